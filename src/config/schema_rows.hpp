// The rows of the key table, in two parts (private to config).
#pragma once

#include <vector>

#include "hetlora/config/schema.hpp"

namespace hetlora::config_detail {

/// Rows of experiment, model, data, lora, local and strategy.
void add_experiment_rows(std::vector<ConfigKey>& rows);
/// Rows of evaluation, compute, comm, output and pretrain.
void add_environment_rows(std::vector<ConfigKey>& rows);

}  // namespace hetlora::config_detail
