// Which matrices of a model carry LoRA (see hetlora/model/config.hpp).
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/model/config.hpp"

namespace hetlora {

AdapterLayout make_adapter_layout(const ModelConfig& config, const std::vector<std::string>& targets) {
    const std::vector<LoraTarget> known = lora_targets(*config.family);
    std::vector<std::string> names;
    for (const LoraTarget& target : known) names.push_back(target.name);
    std::set<std::string> chosen;
    for (const auto& target : targets) {
        if (target == "all-linear") {
            chosen.insert(names.begin(), names.end());
            continue;
        }
        if (std::ranges::find(names, target) == names.end()) {
            throw usage_error(
                "lora.targets: a model of family {} has no matrix `{}`{}; it has {}, and all-linear means all",
                config.family->model_type, target, did_you_mean(target, names), fmt::join(names, ", "));
        }
        if (!chosen.insert(target).second) throw usage_error("lora.targets: `{}` is named twice", target);
    }
    if (chosen.empty()) throw usage_error("lora.targets is empty: name at least one of {}", fmt::join(names, ", "));
    AdapterLayout layout;
    const std::int64_t D = config.hidden_size;
    const std::int64_t I = config.intermediate_size;
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t widths[layer_matrix_count][2] = {{Q, D}, {KV, D}, {KV, D}, {D, Q},
                                                        {I, D}, {I, D},  {D, I},  {Q + 2 * KV, D}};  // d_out, d_in
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
        for (const LoraTarget& target : known) {
            if (!chosen.contains(target.name)) continue;
            layout.matrices.push_back(
                {.name = fmt::format("{}{}{}.{}", config.family->prefix, config.family->names.layer, layer,
                                     config.family->names.matrix[target.matrix]),
                 .layer = static_cast<int>(layer),
                 .target = target.name,
                 .d_out = widths[target.matrix][0],
                 .d_in = widths[target.matrix][1],
                 .ambiguous = target.ambiguous});
        }
    }
    return layout;
}

void check_lora_rank(const AdapterLayout& layout, std::int64_t rank_max) {
    for (const auto& matrix : layout.matrices) {
        const std::int64_t side = std::min(matrix.d_in, matrix.d_out);
        if (rank_max > side) {
            throw usage_error("lora.rank_max = {} is larger than the smaller side of {} [{} x {}]: take at most {}",
                              rank_max, matrix.name, matrix.d_out, matrix.d_in, side);
        }
    }
}

}  // namespace hetlora
