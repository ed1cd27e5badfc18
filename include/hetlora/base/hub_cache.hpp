// Models in the local cache of the Hugging Face hub: an id like "org/name" stands for a folder of that cache. Nothing
// is ever downloaded.
//
//     <cache>/models--org--name/refs/main            the commit
//     <cache>/models--org--name/snapshots/<commit>/  config.json, model.safetensors, ...
//
// <cache> is $HF_HUB_CACHE, else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace hetlora {

/// Whether the text has the form of a hub id: two words of letters, digits, '-', '_' and '.' with one '/' between them.
[[nodiscard]] bool is_hub_id(std::string_view text);

/// The cache's folder; it need not exist. Empty where no variable leads to one.
[[nodiscard]] std::filesystem::path hub_cache_folder();

/// The folder of this id's commit that `main` names, if the cache has it.
[[nodiscard]] std::optional<std::filesystem::path> hub_snapshot(std::string_view hub_id);

/// A folder of the cache in the hub's own terms.
struct HubModel {
    std::string hub_id;  ///< "org/name"
    std::string commit;
};
/// What model.path is of, if it is a snapshot folder of a cache (any cache: by its name).
[[nodiscard]] std::optional<HubModel> hub_model_of(const std::filesystem::path& folder);

/// What to show of a model's folder: "org/name@commit" (7 digits), or the folder's own name.
[[nodiscard]] std::string model_label(const std::filesystem::path& folder);

/// What other programs find the model by: its hub id where it is one of the hub, else the folder's path.
[[nodiscard]] std::string base_model_name(const std::filesystem::path& folder);

/// For errors about a folder that is not there: what to do if it was meant as a hub id, or nothing.
[[nodiscard]] std::string hub_advice(const std::filesystem::path& missing_folder);

}  // namespace hetlora
