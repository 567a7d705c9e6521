# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, one folder for each question. Run them as modules from the checkout.

bench.run         How much does the package save on this machine? Runs the main ones, and plots.
bench.ops         How fast is each op, and what do other ways to do the same job take?
bench.draft       What does a faster head save in a whole draft step?
bench.decoding    What does it save from prompt to text, in batches and inside an engine?
bench.e2e         How many tokens a second does each head give, target included, at real shapes?
bench.policy      Which tokens should be active?
bench.tuning      Which variant of the CUDA head, and which mode of the head, is the fastest?
bench.plots       What do the measured figures look like?
bench.harness     How does every benchmark make its inputs, check, time and report?
"""

import os

from .harness import choose_build

# torch reads this when it is imported: large tensors then lie on 2 MB pages, as in a serving
# process. Without them, reading rows of a 1 GB weight in random order adds a page walk per row.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

choose_build.use_requested()
