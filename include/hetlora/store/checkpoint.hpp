// Checkpoints: what a run needs to go on after a round exactly as if nothing had happened.
//
//     RUN/checkpoint/round_000012/state.safetensors   numbers: F64, F32 and I64 vectors by name
//                                 manifest.json       schema, run, round, texts (the resolved config, hashes)
//                                 SHA256SUMS          of both (`sha256sum -c` reads it)
//
// A checkpoint is complete or absent: it is written under a temporary name, synced, and renamed. The frozen base is
// never in it, only its hash. What is inside is up to the caller (app/resume.hpp).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace hetlora {

inline constexpr const char* checkpoint_schema_name = "hetlora-checkpoint";
inline constexpr int checkpoint_schema_version = 1;

struct Checkpoint {
    std::int64_t round = 0;  ///< the last round that is in it
    std::string run_id{};    ///< identity of the run
    std::string creator_version{};
    std::map<std::string, std::string> texts{};
    std::map<std::string, std::vector<double>> numbers{};
    std::map<std::string, std::vector<std::int64_t>> integers{};
    std::map<std::string, std::vector<float>> floats{};  ///< large ones that are fp32 anyway
};

/// Writes RUN/checkpoint/round_NNNNNN and then removes all but the newest `keep` of them (keep >= 1).
/// @throws Error (environment) if the disk refuses: then nothing new is there and the older ones stay
void write_checkpoint(const std::filesystem::path& checkpoints, const Checkpoint& checkpoint, std::int64_t keep);

/// Reads one checkpoint's folder, all checksums verified.
/// @throws Error (input) if a file is missing, damaged, or of another schema version
[[nodiscard]] Checkpoint read_checkpoint(const std::filesystem::path& folder);

/// Rounds of the checkpoints in a folder (by their names, unread), ascending; empty if the folder does not exist.
[[nodiscard]] std::vector<std::int64_t> checkpoint_rounds(const std::filesystem::path& checkpoints);
[[nodiscard]] std::filesystem::path checkpoint_folder(const std::filesystem::path& checkpoints, std::int64_t round);

/// A checkpoint to go on from, and why newer ones were passed over (one sentence each).
struct FoundCheckpoint {
    std::optional<Checkpoint> checkpoint{};
    std::vector<std::string> damaged{};
};
/// The newest checkpoint that is whole. Damaged ones are passed over and named; nothing is removed.
/// @throws Error (input) for one that is whole, but was written by another version of the format
[[nodiscard]] FoundCheckpoint newest_checkpoint(const std::filesystem::path& checkpoints);

/// Removes what an interrupted write_checkpoint left behind.
void remove_unfinished_checkpoints(const std::filesystem::path& checkpoints);

}  // namespace hetlora
