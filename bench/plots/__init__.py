# SPDX-License-Identifier: Apache-2.0
"""What do the measured figures look like?

    python -m bench.plots [FOLDER ...]      plots of heads and drafts
    python -m bench.plots.policy [FOLDER]   plots of the policies

Both read CSV files and measure nothing.
"""
