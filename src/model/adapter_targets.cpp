// Which matrices of a model carry LoRA (see hetlora/model/config.hpp).
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/model/config.hpp"

namespace hetlora {

const std::vector<std::string>& lora_target_names() {
    static const std::vector<std::string> names{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
    return names;
}

AdapterLayout make_adapter_layout(const ModelConfig& config, const std::vector<std::string>& targets) {
    const auto& known = lora_target_names();
    std::set<std::string> chosen;
    for (const auto& target : targets) {
        if (target == "all-linear") {
            chosen.insert(known.begin(), known.end());
            continue;
        }
        if (std::ranges::find(known, target) == known.end()) {
            throw usage_error("lora.targets: unknown matrix `{}`{}; known are {} and all-linear", target,
                              did_you_mean(target, known), fmt::join(known, ", "));
        }
        if (!chosen.insert(target).second) throw usage_error("lora.targets: `{}` is named twice", target);
    }
    if (chosen.empty()) throw usage_error("lora.targets is empty: name at least one of {}", fmt::join(known, ", "));
    AdapterLayout layout;
    const std::int64_t D = config.hidden_size;
    const std::int64_t I = config.intermediate_size;
    const std::int64_t widths[7][2] = {{config.query_width(), D},
                                       {config.kv_width(), D},
                                       {config.kv_width(), D},
                                       {D, config.query_width()},
                                       {I, D},
                                       {I, D},
                                       {D, I}};  // d_out, d_in
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
        for (std::size_t t = 0; t < known.size(); ++t) {
            if (!chosen.contains(known[t])) continue;
            layout.matrices.push_back({.name = fmt::format("{}layers.{}.{}.{}", config.family->prefix, layer,
                                                           t < 4 ? "self_attn" : "mlp", known[t]),
                                       .layer = static_cast<int>(layer),
                                       .target = known[t],
                                       .d_out = widths[t][0],
                                       .d_in = widths[t][1]});
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
