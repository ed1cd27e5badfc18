// See hetlora/config/adapter_hash.hpp.
#include "hetlora/config/adapter_hash.hpp"

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"

namespace hetlora {

std::string adapter_sha256(const std::filesystem::path& folder) {
    static std::mutex mutex;
    static std::map<std::filesystem::path, std::string> known;  // the identity is asked for after every round
    const std::lock_guard lock(mutex);
    if (const auto found = known.find(folder); found != known.end()) return found->second;
    const auto path = folder / "adapter_config.json";
    try {
        const auto config = nlohmann::json::parse(read_text_file(path));
        nlohmann::json kept;
        for (const char* key : {"r", "lora_alpha", "use_rslora"}) kept[key] = config.value(key, nlohmann::json());
        return known[folder] = sha256_hex(sha256_file(folder / "adapter_model.safetensors") + kept.dump());
    } catch (const nlohmann::json::exception& error) {
        throw input_error("{}: not the JSON of a PEFT adapter: {}; export the adapter again", path.string(),
                          error.what());
    }
}

}  // namespace hetlora
