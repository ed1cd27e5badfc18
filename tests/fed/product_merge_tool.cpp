// product_merge_tool CASES.json RESULTS.json
// Runs fed/product_merge.hpp on every case of a list, for tests/python/test_product_merge.py, which compares the
// results with dense NumPy. JSON keeps every bit of a double.
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/product_merge.hpp"

namespace hetlora {
namespace {

using nlohmann::json;

template <typename Value>
Value chosen(const json& name, std::initializer_list<std::pair<const char*, Value>> choices) {
    for (const auto& [text, value] : choices) {
        if (name == text) return value;
    }
    throw bug_error("unknown choice {}", name.dump());
}

json to_json(const LowRankDelta& delta) {
    json matrices = json::array();
    for (const auto& matrix : delta.matrices) {
        matrices.push_back({{"lora_rank", matrix.lora_rank}, {"a", matrix.a}, {"bt", matrix.bt}});
    }
    return {{"matrices", matrices}, {"bytes", delta.bytes(8)}};
}

json to_json(const TruncatedDelta& cut) {
    json result = to_json(cut.delta);
    result["singular_values"] = cut.singular_values;
    result["energy_kept"] = cut.energy_kept;
    return result;
}

json run_case(const json& input) {
    AdapterLayout layout;
    for (const auto& shape : input.at("shapes")) {
        layout.matrices.push_back({.name = "m", .layer = 0, .target = "q_proj", .d_out = shape[0], .d_in = shape[1]});
    }
    const json& clients = input.at("clients");
    std::vector<std::vector<double>> factors;
    std::vector<std::vector<double>> weights;
    for (const auto& client : clients) {
        factors.push_back(client.at("factors"));
        weights.push_back(client.at("weights"));
    }
    std::vector<UploadedFactors> uploads;
    for (std::size_t k = 0; k < clients.size(); ++k) {
        uploads.push_back({.client = static_cast<std::int64_t>(k),
                           .factors = factors[k],
                           .lora_rank = clients[k].at("lora_rank"),
                           .scale = clients[k].at("scale"),
                           .weights = weights[k]});
    }
    const std::vector<std::int64_t> levels = input.at("levels");
    const auto weighting = chosen<SlotWeighting>(input.at("weighting"), {{"all", SlotWeighting::all},
                                                                         {"contributors", SlotWeighting::contributors},
                                                                         {"levels", SlotWeighting::levels}});
    const SlotWeights slot = slot_weights(layout, uploads, weighting, levels);
    const ProductMergeInput merge{.layout = layout, .uploads = uploads, .weights = slot};
    const ProductMergeOptions options{
        .rank_max = input.at("rank_max"),
        .scale = input.at("scale"),
        .split = chosen<FactorSplit>(
            input.at("split"),
            {{"left", FactorSplit::left}, {"sqrt", FactorSplit::sqrt}, {"right", FactorSplit::right}}),
        .null_slots = chosen<NullSlots>(input.at("null_slots"),
                                        {{"literal", NullSlots::literal}, {"learnable", NullSlots::learnable}}),
        .seed = 7,
        .round_to_fp32 = input.at("round_to_fp32"),
        .driver = chosen<SvdDriver>(input.at("driver"),
                                    {{"automatic", SvdDriver::automatic}, {"symmetric", SvdDriver::symmetric}})};
    const ProductMergeResult result = merge_by_product(merge, options);
    json output{{"global", result.global}, {"weights", slot.of_client}};
    for (const auto& matrix : result.matrices) {
        output["singular_values"].push_back(matrix.singular_values);
        output["energy_kept"].push_back(matrix.energy_kept);
        output["n_filled"].push_back(matrix.n_filled);
    }
    const LowRankDelta stack = stack_updates(merge);
    output["stack"] = to_json(stack);
    output["by_energy"] = to_json(truncate_by_energy(stack, input.at("tau")));
    if (input.contains("mean")) {
        const std::vector<double> mean = input.at("mean");
        const LowRankDelta residual = residual_delta(merge, mean, options.rank_max, options.scale);
        output["residual"] = to_json(residual);
        output["residual_cut"] = to_json(truncate_to_rank(residual, input.at("residual_rank")));
    }
    return output;
}

}  // namespace
}  // namespace hetlora

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fputs("usage: product_merge_tool CASES.json RESULTS.json\n", stderr);
        return 2;
    }
    try {
        nlohmann::json results = nlohmann::json::array();
        for (const auto& input : nlohmann::json::parse(std::ifstream(argv[1]))) {
            results.push_back(hetlora::run_case(input));
        }
        std::ofstream(argv[2]) << results;
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
