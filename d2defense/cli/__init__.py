# SPDX-License-Identifier: Apache-2.0
"""The d2defense program: one module a command, none of which holds logic."""
