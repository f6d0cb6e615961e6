# SPDX-License-Identifier: Apache-2.0
"""The paper's experiments, and ours beside them, as steps that can be killed and resumed."""
