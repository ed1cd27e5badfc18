// See hetlora/app/peft_adapter.hpp.
#include "hetlora/app/peft_adapter.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/fed/client_work.hpp"
#include "hetlora/fed/initial_adapter.hpp"
#include "hetlora/store/safetensors.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<double> to_doubles(const SafetensorsFile& file, const std::string& name) {
    const TensorInfo& info = file.info(name);
    const auto bytes = file.bytes(name);
    const at::ScalarType type = info.dtype == "F32"    ? at::kFloat
                                : info.dtype == "F64"  ? at::kDouble
                                : info.dtype == "F16"  ? at::kHalf
                                : info.dtype == "BF16" ? at::kBFloat16
                                                       : at::kByte;
    if (type == at::kByte)
        throw input_error("{}: tensor {} has dtype {}; only floating-point adapters can be read", file.path().string(),
                          name, info.dtype);
    at::Tensor raw = at::empty(info.shape, at::TensorOptions().dtype(type));
    std::memcpy(raw.mutable_data_ptr(), bytes.data(), bytes.size());
    const at::Tensor values = raw.to(at::kDouble).contiguous();
    return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

/// What adapter_config.json says beside the matrices.
struct PeftConfig {
    std::int64_t lora_rank = 0;
    double scale = 1.0;  ///< s of what PEFT adds, s B A
    bool head = false;   ///< modules_to_save name the head's
};

/// @throws Error (input) for modules_to_save that are not this head's
bool saves_head(const json& modules, const ClassHeadShape& head, const fs::path& path) {
    const std::vector<std::string> own = head.modules();
    const json wanted(std::set<std::string>(own.begin(), own.end()));
    std::set<json> named;
    if (modules.is_array()) named.insert(modules.begin(), modules.end());
    if (json(named) == wanted) return true;
    throw input_error(
        "{}: `modules_to_save` = {}, but the model's classification head is {}: the adapter belongs to another model",
        path.string(), modules.dump(), wanted.dump());
}

PeftConfig read_peft_config(const fs::path& path, const ClassHeadShape* head) {
    json config;
    try {
        config = json::parse(read_text_file(path));
    } catch (const json::exception& error) {
        throw input_error("{}: not valid JSON: {}; export the adapter again", path.string(), error.what());
    }
    const auto is_set = [&](const char* key) {
        if (!config.is_object() || !config.contains(key)) return false;
        const json& value = config.at(key);
        return !(value.is_null() || value == false || value == "none" || value == 0 ||
                 ((value.is_object() || value.is_array()) && value.empty()));
    };
    const auto refuse = [&](std::string_view key, const std::string& value) -> Error {
        return input_error(
            "{}: `{}` = {} is not implemented: hetlora reads plain LoRA adapters of one lora_rank; make the adapter "
            "without it",
            path.string(), key, value);
    };
    if (!config.is_object() || !config.contains("r") || !config.at("r").is_number_integer()) {
        throw input_error("{}: no whole number `r`: is this the folder of a PEFT LoRA adapter?", path.string());
    }
    if (config.contains("peft_type") && config.at("peft_type") != "LORA") {
        throw refuse("peft_type", config.at("peft_type").dump());
    }
    for (const char* key :
         {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "bias", "rank_pattern", "alpha_pattern",
          "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "layer_replication"}) {
        if (is_set(key)) throw refuse(key, config.at(key).dump());
    }
    const char* whole = "modules_to_save";
    if (is_set(whole) && head == nullptr) throw refuse(whole, config.at(whole).dump());
    const bool with_head = is_set(whole) && saves_head(config.at(whole), *head, path);
    const auto lora_rank = config.at("r").get<std::int64_t>();
    const json alpha = config.value("lora_alpha", json(lora_rank));
    if (lora_rank < 1 || !alpha.is_number() || !(alpha.get<double>() > 0)) {
        throw input_error("{}: `r` = {} and `lora_alpha` = {} must be positive numbers", path.string(), lora_rank,
                          alpha.dump());
    }
    const auto r = static_cast<double>(lora_rank);
    return {.lora_rank = lora_rank,
            .scale = alpha.get<double>() / (is_set("use_rslora") ? std::sqrt(r) : r),
            .head = with_head};
}

/// The head's tensors in the order of its values.
std::vector<double> read_head(const SafetensorsFile& file, const ClassHeadShape& head, const fs::path& folder) {
    std::vector<double> values;
    for (const ClassHeadPart& part : head.parts()) {
        const std::string name = "base_model.model." + part.name;
        std::vector<std::int64_t> shape{part.rows};
        if (part.columns > 0) shape.push_back(part.columns);
        if (!file.contains(name) || file.info(name).shape != shape) {
            throw input_error(
                "{}: tensor {} of the classification head is {}: the adapter belongs to another model, or to data with "
                "other than {} labels",
                folder.string(), name, file.contains(name) ? "of another shape" : "missing", head.labels);
        }
        const std::vector<double> source = to_doubles(file, name);
        values.insert(values.end(), source.begin(), source.end());
    }
    return values;
}

}  // namespace

PeftAdapter read_peft_adapter(const fs::path& folder, const AdapterLayout& layout, std::int64_t rank_max, double scale,
                              const ClassHeadShape* head) {
    const PeftConfig config = read_peft_config(folder / "adapter_config.json", head);
    const std::int64_t lora_rank = config.lora_rank;
    if (lora_rank > rank_max) {
        throw input_error("{}: the adapter has lora_rank {}, but lora.rank_max = {}: set lora.rank_max to it",
                          folder.string(), lora_rank, rank_max);
    }
    // alpha was scale * r, rounded: the quotient may miss 1 by a last bit, and B should not.
    const double ratio = config.scale / scale;
    const double factor = std::abs(ratio - 1.0) < 1e-14 ? 1.0 : ratio;
    const SafetensorsFile file(folder / "adapter_model.safetensors");
    PeftAdapter adapter{.lora_rank = lora_rank,
                        .values = std::vector<double>(static_cast<std::size_t>(layout.parameters(lora_rank)), 0.0),
                        .head = config.head ? read_head(file, *head, folder) : std::vector<double>()};
    std::size_t used = config.head ? head->parts().size() : 0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const AdaptedMatrix& matrix = layout.matrices[m];
        const std::string prefix = "base_model.model." + matrix.name;
        for (const bool is_a : {true, false}) {
            const std::string name = prefix + (is_a ? ".lora_A.weight" : ".lora_B.weight");
            const std::vector<std::int64_t> shape =
                is_a ? std::vector{lora_rank, matrix.d_in} : std::vector{matrix.d_out, lora_rank};
            if (!file.contains(name) || file.info(name).shape != shape) {
                throw input_error("{}: tensor {} is {}: the adapter belongs to another model or to other lora.targets",
                                  folder.string(), name, file.contains(name) ? "of another shape" : "missing");
            }
            const auto source = to_doubles(file, name);
            ++used;
            if (is_a) {
                std::ranges::copy(source, adapter.values.begin() + layout.offset_a(m, lora_rank));
                continue;
            }
            double* bt = adapter.values.data() + layout.offset_b(m, lora_rank);
            for (std::int64_t o = 0; o < matrix.d_out; ++o) {
                for (std::int64_t r = 0; r < lora_rank; ++r) {
                    bt[r * matrix.d_out + o] = source[static_cast<std::size_t>(o * lora_rank + r)] * factor;
                }
            }
        }
    }
    if (used != file.tensors().size()) {
        throw input_error(
            "{}: {} tensors, but lora.targets asks for {}: set lora.targets to the adapter's target_modules",
            folder.string(), file.tensors().size(), used);
    }
    const auto is_finite = [](double value) { return std::isfinite(value); };
    if (!std::ranges::all_of(adapter.values, is_finite) || !std::ranges::all_of(adapter.head, is_finite)) {
        throw input_error("{}: the adapter holds values that are not finite: its training had diverged",
                          folder.string());
    }
    return adapter;
}

std::vector<double> starting_adapter(const Settings& settings, const Strategy& strategy, const AdapterLayout& layout) {
    const AdapterInitLaw law = adapter_init_law(settings);
    if (strategy.trains_base()) return std::vector<double>(static_cast<std::size_t>(layout.parameters(law.rank_max)));
    std::vector<double> start = initial_adapter(layout, law);
    if (settings.model.adapter.empty()) return start;
    if (strategy.restarts() || strategy.is_personal()) {
        throw usage_error(
            "model.adapter = {}: strategy.preset = {} does not go on from an adapter ({}); merge the adapter into the "
            "base first, and name that as model.path",
            settings.model.adapter.string(), strategy.preset,
            strategy.restarts() ? "its clients start afresh in every round" : "every client keeps its own B");
    }
    PeftAdapter adapter = read_peft_adapter(settings.model.adapter, layout, law.rank_max,
                                            lora_scale(settings.lora, settings.lora.rank_max));
    if (law.round_to_fp32) {
        for (double& value : adapter.values) value = static_cast<double>(static_cast<float>(value));
    }
    std::vector<std::int64_t> slots(static_cast<std::size_t>(adapter.lora_rank));
    for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<std::int64_t>(i);
    place_slots<double>(layout, adapter.values, slots, start, law.rank_max);
    return start;
}

}  // namespace hetlora
