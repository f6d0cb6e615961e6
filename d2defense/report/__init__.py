# SPDX-License-Identifier: Apache-2.0
"""What a scan found, for people and machines: figures, HTML report, tables, result files."""
