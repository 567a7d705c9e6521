# SPDX-License-Identifier: Apache-2.0
"""How many tokens a second does each head give, target included, at real shapes?

bench.e2e           step times of whole steps as graphs, and tokens a second at given acceptance
bench.e2e --floor   the same computed from bytes, without measuring
"""
