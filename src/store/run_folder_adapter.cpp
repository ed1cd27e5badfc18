// See hetlora/store/run_folder_adapter.hpp.
#include "hetlora/store/run_folder_adapter.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// Row-major transpose of [rows, columns], rounded once to T.
template <typename T>
std::vector<T> converted(std::span<const double> values, std::int64_t rows, std::int64_t columns, bool transpose) {
    std::vector<T> out(values.size());
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < columns; ++j) {
            const std::int64_t to = transpose ? j * rows + i : i * columns + j;
            out[static_cast<std::size_t>(to)] = static_cast<T>(values[static_cast<std::size_t>(i * columns + j)]);
        }
    }
    return out;
}

template <typename T>
void write_tensors(const fs::path& path, const AdapterLayout& layout, std::span<const double> values,
                   const AdapterExport& about) {
    const std::int64_t r = about.lora_rank;
    std::deque<std::vector<T>> factors;  // a deque: the spans below must stay valid while it grows
    std::vector<TensorData> tensors;
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, std::vector<T> data) {
        factors.push_back(std::move(data));
        tensors.push_back({.name = name,
                           .dtype = about.dtype,
                           .shape = std::move(shape),
                           .bytes = std::as_bytes(std::span<const T>(factors.back()))});
    };
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const AdaptedMatrix& matrix = layout.matrices[m];
        const auto a =
            values.subspan(static_cast<std::size_t>(layout.offset_a(m, r)), static_cast<std::size_t>(r * matrix.d_in));
        const auto bt =
            values.subspan(static_cast<std::size_t>(layout.offset_b(m, r)), static_cast<std::size_t>(r * matrix.d_out));
        const std::string prefix = "base_model.model." + matrix.name;
        add(prefix + ".lora_A.weight", {r, matrix.d_in}, converted<T>(a, r, matrix.d_in, false));
        add(prefix + ".lora_B.weight", {matrix.d_out, r}, converted<T>(bt, r, matrix.d_out, true));
    }
    for (const SavedTensor& saved : about.saved) {
        add("base_model.model." + saved.name, saved.shape, std::vector<T>(saved.values.begin(), saved.values.end()));
    }
    write_safetensors(path, tensors, about.metadata);
}

std::string adapter_config(const AdapterLayout& layout, const AdapterExport& about) {
    std::vector<std::string> targets;
    for (const AdaptedMatrix& matrix : layout.matrices) {
        const std::string& target = matrix.ambiguous ? matrix.name : matrix.target;
        if (std::ranges::find(targets, target) == targets.end()) targets.push_back(target);
    }
    const double alpha = about.scale * static_cast<double>(about.lora_rank);
    Json config;
    config["peft_type"] = "LORA";
    config["task_type"] = about.task_type;
    config["base_model_name_or_path"] = about.base_model;
    config["r"] = about.lora_rank;
    // peft declares an integer; a whole number is written as one, any other works as a float.
    const bool whole = std::abs(alpha) < 1e15 && alpha == std::floor(alpha);
    config["lora_alpha"] = whole ? Json(static_cast<std::int64_t>(alpha)) : Json(alpha);
    config["use_rslora"] = false;
    config["use_dora"] = false;
    config["lora_dropout"] = 0.0;
    config["bias"] = "none";
    config["fan_in_fan_out"] = about.fan_in_fan_out;
    config["inference_mode"] = true;
    config["target_modules"] = targets;
    config["modules_to_save"] = about.modules_to_save.empty() ? Json(nullptr) : Json(about.modules_to_save);
    config["layers_to_transform"] = nullptr;
    config["layers_pattern"] = nullptr;
    config["rank_pattern"] = Json::object();
    config["alpha_pattern"] = Json::object();
    return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

[[nodiscard]] Error cannot(const char* what, const fs::path& path, const std::error_code& error) {
    return environment_error("cannot {} '{}' - {} - check free space, quota and permissions there", what, path.string(),
                             error.message());
}

}  // namespace

void write_peft_adapter(const fs::path& folder, const AdapterLayout& layout, std::span<const double> values,
                        const AdapterExport& about) {
    if (about.lora_rank < 1 || static_cast<std::int64_t>(values.size()) != layout.parameters(about.lora_rank)) {
        throw bug_error(
            "{} values for an adapter of lora_rank {} with {} parameters - writing {} - this is a mistake in hetlora",
            values.size(), about.lora_rank, layout.parameters(about.lora_rank), folder.string());
    }
    if (about.dtype != "F32" && about.dtype != "F64") {
        throw bug_error("adapter dtype '{}' - writing {} - use F32 or F64", about.dtype, folder.string());
    }
    const fs::path temporary = folder.string() + fmt::format(".tmp{}", ::getpid());
    std::error_code error;
    fs::remove_all(temporary, error);
    fs::create_directories(temporary, error);
    if (error) throw cannot("create the folder", temporary, error);
    try {
        const fs::path tensors = temporary / "adapter_model.safetensors";
        about.dtype == "F32" ? write_tensors<float>(tensors, layout, values, about)
                             : write_tensors<double>(tensors, layout, values, about);
        write_file_atomically(temporary / "adapter_config.json", adapter_config(layout, about));
        fs::remove_all(folder, error);
        if (error) throw cannot("replace the folder", folder, error);
        fs::rename(temporary, folder, error);
        if (error) throw cannot("name the folder", folder, error);
    } catch (...) {
        std::error_code ignored;
        fs::remove_all(temporary, ignored);
        throw;
    }
}

}  // namespace hetlora
