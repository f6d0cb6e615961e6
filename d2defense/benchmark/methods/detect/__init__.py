# SPDX-License-Identifier: Apache-2.0
"""Ways to tell backdoored detectors from clean ones: one file each, found by their registry."""
