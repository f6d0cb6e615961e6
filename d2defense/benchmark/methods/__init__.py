# SPDX-License-Identifier: Apache-2.0
"""Methods that are compared and are not part of the product; one folder a task."""
