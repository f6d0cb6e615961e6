# SPDX-License-Identifier: Apache-2.0
"""The generated parts of the documentation; tools/generate_docs.py writes them."""
