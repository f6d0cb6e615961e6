# SPDX-License-Identifier: Apache-2.0
"""The search for an unknown trigger: by gradient, on the suspect, held against references."""
