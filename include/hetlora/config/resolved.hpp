// Settings written out: the config file that repeats a run, the same as JSON, the identity of a run, and the
// reference file with every key.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// A config file with every key at its present value. load_settings_text() gives the same settings again, bit for bit.
/// Keys without effect (e.g. lora_alpha beside a constant scale) are commented out.
/// @param header  text for the top (made comments), e.g. hashes; may have several lines
[[nodiscard]] std::string resolved_ini(const Settings& settings, std::string_view header = {});

/// The same as a JSON object of sections with typed values; policies that the preset decides are "preset".
/// @param resolved_strategy  what these policies are (fed's logged_strategy()): the section `resolved_strategy`, for
///                           readers only; left out where empty
[[nodiscard]] std::string resolved_json(const Settings& settings,
                                        const std::map<std::string, std::string>& resolved_strategy = {});

/// What a run's identity is made of, one "name=value" a line: the keys that can change the result and are not at
/// their default, and the content of base, data, rank_file and plugin. Two runs can be compared by it.
/// @throws Error(input) if lora.rank_file or strategy.plugin is used and cannot be read
[[nodiscard]] std::string identity_text(const Settings& settings, std::string_view base_sha256,
                                        std::string_view data_sha256);

/// A run's identity: SHA-256 of identity_text, 64 hex digits.
[[nodiscard]] std::string identity_hash(const Settings& settings, std::string_view base_sha256,
                                        std::string_view data_sha256);

/// The same for pretraining a base.
[[nodiscard]] std::string pretrain_identity_hash(const Settings& settings, std::string_view data_sha256);

/// The content of configs/reference.ini: every key with default, help and allowed values.
[[nodiscard]] std::string reference_ini();

}  // namespace hetlora
