// Replies that the base and the trained model write, beside what the person really wrote.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"

namespace hetlora {

/// One reply: the conversation so far (as much as the model saw), what the person wrote, and two greedy continuations.
struct Sample {
    std::string prompt;
    std::string real;
    std::optional<std::string> base;  // none where the strategy adds to the base
    std::string tuned;
};

/// evaluation.samples replies for conversations of held-out people (chosen by hash); empty if samples = 0, and where
/// clients keep a factor of the adapter for themselves (fedsa).
/// @param global canonical form at rank_max
std::vector<Sample> make_samples(Experiment& experiment, std::span<const double> global);

/// The replies for the terminal, the ends of long texts only. Nothing if there are none.
void print_samples(std::span<const Sample> samples, Terminal& terminal);

/// Writes one JSON object a line: prompt, real, base (or null), tuned. Bytes that are no UTF-8 are replaced. Throws
/// where it cannot.
void write_samples(const std::filesystem::path& file, std::span<const Sample> samples);

}  // namespace hetlora
