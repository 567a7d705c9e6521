# SPDX-License-Identifier: Apache-2.0
from .ops import gather_rows_ as gather_rows_
from .ops import sparse_head as sparse_head
from .ops import sparse_logits as sparse_logits
from .ops import sparse_sample as sparse_sample
from .ops import tree_accept as tree_accept
from .ops import tree_cut as tree_cut
from .ops import tree_grow_ as tree_grow_
from .ops import vocab_count_ as vocab_count_
from .ops import vocab_observe_ as vocab_observe_
from .ops import vocab_refill_ as vocab_refill_
from .ops import vocab_update_ as vocab_update_
