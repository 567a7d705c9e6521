// SPDX-License-Identifier: Apache-2.0
// The checks that sparse_head, sparse_logits and sparse_sample share.
#pragma once

#include <optional>

#include "args.h"
#include "binding/check.h"
#include "binding/device_call.h"

namespace microspec {

// Returns the call's arguments, or raises an error for one that does not fit. Does not look at ids.
HeadArgs checked_head(const Checker& check, const DeviceCall& call, const Tensor& hidden,
                      const Tensor& weight, const Tensor& active_ids, bool packed,
                      const std::optional<Tensor>& group_ids, const std::optional<Tensor>& weight_scale,
                      const std::optional<Tensor>& bias, double logit_scale, double softcap);

// Raises an error for an id or a group out of range, if the values are available.
void check_head_ids(const Checker& check, const DeviceCall& call, const HeadArgs& args,
                    const Tensor& active_ids, const std::optional<Tensor>& group_ids);

}  // namespace microspec
