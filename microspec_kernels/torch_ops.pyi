# SPDX-License-Identifier: Apache-2.0
from .ops import gather_rows_ as gather_rows_
from .ops import sparse_head as sparse_head
from .ops import sparse_logits as sparse_logits
from .ops import vocab_update_ as vocab_update_
