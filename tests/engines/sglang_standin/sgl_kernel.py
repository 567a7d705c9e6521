# SPDX-License-Identifier: Apache-2.0
"""SGLang's calls of `sgl_kernel` on a CPU for EAGLE, in plain PyTorch.

`sgl_kernel` has no wheel for CPUs. Names and arguments are SGLang's; their meaning follows the
Triton kernels that other devices use instead.
"""

import ctypes

import torch
from torch import Tensor


def assign_req_to_token_pool_cpu(
    rows: Tensor, req_to_token: Tensor, start: Tensor, end: Tensor, locations: Tensor, width: int
) -> None:
    """Write each request's new cache locations after its existing ones."""
    done = 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        req_to_token[row, first:last] = locations[done : done + last - first]
        done += last - first


def assign_extend_cache_locs_cpu(
    rows: Tensor, req_to_token: Tensor, start: Tensor, end: Tensor, locations: Tensor, width: int
) -> None:
    """Read the cache locations [start, end) of each request."""
    parts = [
        req_to_token[row, first:last]
        for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True)
    ]
    found = torch.cat(parts) if parts else locations[:0]
    locations[: len(found)] = found


def assign_draft_cache_locs_contiguous_cpu(
    rows: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    locations: Tensor,
    width: int,
    topk: int,
    columns: int,
) -> None:
    """Read the topk · columns cache locations after each request's."""
    assign_extend_cache_locs_cpu(
        rows, req_to_token, seq_lens, seq_lens + topk * columns, locations, width
    )


def fill_bonus_tokens_cpu(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, stride: int
) -> None:
    """Write the last accepted token of each request."""
    first = stride * torch.arange(len(accept_lens))
    bonus_tokens.copy_(accept_tokens.flatten()[first + accept_lens - 1])


def fill_accept_out_cache_loc_cpu(
    accept_index: Tensor, locations: Tensor, accepted: Tensor
) -> None:
    """Write the cache locations of accepted tokens, without gaps."""
    index = accept_index.flatten()
    index = index[index > -1]
    accepted[: len(index)] = locations[index]


def copy_all_layer_kv_cache_cpu(
    pointers: Tensor, strides: Tensor, to: Tensor, origin: Tensor
) -> None:
    """Move entries of the KV caches, given by their addresses and bytes per entry."""
    for base, stride in zip(pointers.tolist(), strides.tolist(), strict=True):
        copies = [ctypes.string_at(base + stride * place, stride) for place in origin.tolist()]
        for place, copy in zip(to.tolist(), copies, strict=True):
            ctypes.memmove(base + stride * place, copy, stride)


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    depth: int,
    nodes: int,
    tree_mask_mode: int,
) -> None:
    """Build the tree of each request: positions, links and the ancestor mask (FULL_MASK).

    A node whose parent was not selected (scores can be 0) is on no path.
    """
    assert tree_mask_mode == 0, "the Triton attention reads masks over prefix and tree"
    positions, mask_start = positions.view(-1, nodes), 0
    for request, length in enumerate(seq_lens.tolist()):
        places = {index: node for node, index in enumerate(selected[request].tolist(), start=1)}
        parents = [-1]
        for index in places:
            block = index // topk
            parents.append(0 if block == 0 else places.get(parent_list[request, block].item(), -1))
        retrieve_index[request] = torch.arange(nodes) + request * nodes
        for node in (node for node in range(nodes - 1, 0, -1) if parents[node] >= 0):
            retrieve_next_sibling[request, node] = retrieve_next_token[request, parents[node]]
            retrieve_next_token[request, parents[node]] = node
        mask = tree_mask[mask_start : mask_start + nodes * (length + nodes)].view(nodes, -1)
        mask[:, :length], mask[:, length:] = True, False
        for node in range(nodes):
            at, steps = node, 0
            while at > 0:
                mask[node, length + at] = True
                at, steps = parents[at], steps + 1
            mask[node, length] = True
            positions[request, node] = length + steps
        mask_start += nodes * (length + nodes)


def verify_tree_greedy_cpu(
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Walk down each tree as long as a child is the target's own token."""
    nodes = candidates.size(1)
    target = target_predict.view(-1, nodes)
    for request in range(len(candidates)):
        node, accepted = 0, 0
        accept_index[request, 0] = retrive_index[request, 0]
        for _ in range(1, accept_index.size(1)):
            token = target[request, node]
            child = retrive_next_token[request, node].item()
            while child != -1 and candidates[request, child] != token:
                child = retrive_next_sibling[request, child].item()
            if child == -1:
                break
            predicts[retrive_index[request, node]] = token
            node, accepted = child, accepted + 1
            accept_index[request, accepted] = retrive_index[request, node]
        accept_token_num[request] = accepted
        predicts[retrive_index[request, node]] = target[request, node]


def tree_speculative_sampling_target_only(
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,
) -> None:
    """Walk down each tree: accept the sibling at which the running sum of p exceeds the coin.

    If none does, the text goes on with a token drawn from p without the siblings.
    """
    assert threshold_single == threshold_acc == 1.0
    for request, tokens in enumerate(candidates.tolist()):
        node, accepted = 0, 0
        accept_index[request, 0] = retrive_index[request, 0]
        while True:
            rest = target_probs[request, node].double().clone()
            coin, total = float(uniform_samples[request, node]), 0.0
            child = -1
            if accepted + 1 < accept_index.size(1):
                child = retrive_next_token[request, node].item()
            while child != -1:
                total += float(target_probs[request, node, tokens[child]])
                if coin <= total:
                    break
                rest[tokens[child]] = 0.0
                child = retrive_next_sibling[request, child].item()
            if child == -1:
                break
            predicts[retrive_index[request, node]] = tokens[child]
            node, accepted = child, accepted + 1
            accept_index[request, accepted] = retrive_index[request, node]
        accept_token_num[request] = accepted
        sums = rest.cumsum(0)
        drawn = torch.searchsorted(sums, uniform_samples_for_final_sampling[request] * sums[-1])
        predicts[retrive_index[request, node]] = drawn


def rotate_input_ids_cpu(*operands: Tensor) -> None:
    """Fail: only EAGLE with several layers calls this, and no test runs it."""
    raise NotImplementedError
