# SPDX-License-Identifier: Apache-2.0
"""The ops' schemas, as the contract has them: a change is one that users notice."""

SCHEMAS = {
    "sparse_head": (
        "(Tensor hidden, Tensor weight, Tensor active_ids, int k, *, bool packed=False, Tensor? "
        "group_ids=None, Tensor? weight_scale=None, Tensor? bias=None, float logit_scale=1., float "
        "softcap=0.) -> (Tensor logits, Tensor token_ids, Tensor logsumexp)"
    ),
    "sparse_logits": (
        "(Tensor hidden, Tensor weight, Tensor active_ids, *, bool packed=False, Tensor? "
        "group_ids=None, Tensor? weight_scale=None, Tensor? bias=None, float logit_scale=1., float "
        "softcap=0.) -> Tensor"
    ),
    "sparse_sample": (
        "(Tensor hidden, Tensor weight, Tensor active_ids, Tensor temperatures, Tensor seeds, "
        "Tensor positions, *, bool packed=False, Tensor? group_ids=None, Tensor? "
        "weight_scale=None, Tensor? bias=None, float logit_scale=1., float softcap=0., Tensor? "
        "row_tokens=None, Tensor(a!)? token_logits=None, Tensor? logit_rows=None) -> (Tensor "
        "tokens, Tensor log_probs)"
    ),
    "gather_rows_": (
        "(Tensor(a!) slab, Tensor(b!) slab_ids, Tensor weight, Tensor active_ids, *, Tensor(c!)? "
        "slab_scale=None, Tensor? weight_scale=None) -> ()"
    ),
    "vocab_update_": (
        "(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, Tensor(d!) clock, "
        "Tensor tokens, *, Tensor? token_groups=None) -> ()"
    ),
    "vocab_count_": (
        "(Tensor(a!) text_counts, Tensor(b!) seen, Tensor tokens, *, Tensor? token_requests=None, "
        "Tensor? request_lists=None, Tensor(c!)? total_counts=None) -> ()"
    ),
    "vocab_observe_": (
        "(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, Tensor(d!) clock, "
        "Tensor tokens, *, Tensor? lengths=None, Tensor? candidates=None, Tensor? token_rows=None, "
        "Tensor? token_groups=None, Tensor? token_requests=None, Tensor(e!)? tally=None, "
        "int num_lists=0) -> ()"
    ),
    "vocab_refill_": (
        "(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, Tensor(d!) clock, "
        "Tensor text_counts, Tensor token_ranks, Tensor group_lists, *, Tensor? total_counts=None, "
        "int pinned=0, bool reset=True) -> ()"
    ),
    "tree_grow_": (
        "(Tensor(a!) pool_tokens, Tensor(b!) pool_parents, Tensor(c!) pool_costs, Tensor logits, "
        "Tensor token_ids, Tensor logsumexp, int width, *, int begin=0, Tensor? frontier=None) -> "
        "(Tensor frontier, Tensor tokens, Tensor rows)"
    ),
    "tree_cut": (
        "(Tensor roots, Tensor pool_tokens, Tensor pool_parents, Tensor pool_costs, int size) -> "
        "(Tensor tokens, Tensor parents, Tensor depths, Tensor ancestor_mask)"
    ),
    "tree_accept": (
        "(Tensor tokens, Tensor parents, Tensor chosen, int depth) -> (Tensor paths, Tensor "
        "path_tokens, Tensor node_tokens, Tensor counts, Tensor leaves)"
    ),
}
