// `hetlora export RUN_DIR [--round N] [--merged] --to DIR`: a run's result for other programs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace hetlora {

struct ExportRequest {
    std::filesystem::path run;
    std::filesystem::path to;           ///< must not exist, or be empty
    std::optional<std::int64_t> round;  ///< a checkpoint that is still there; empty: the newest
    bool merged = false;
};

/// Writes a PEFT adapter folder, or with `merged` a Hugging Face folder of the whole model: W0 (as the method changed
/// it)
/// + s B A in every adapted matrix, added in fp64 and rounded once to the precision of the run (bfloat16 for bf16),
/// with the base's tokenizer files; of a classification run with its head, as the family's classifier.
/// @return a line for people
/// @throws Error (usage) for a round without checkpoint, a folder in the way, or an adapter alone of a method whose
///         result is in the base; Error (input) for a folder that is no run's
[[nodiscard]] std::string export_run(const ExportRequest& request);

}  // namespace hetlora
