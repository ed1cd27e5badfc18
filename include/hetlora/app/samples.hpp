// Replies that the base and the trained model write, beside what the person really wrote.
#pragma once

#include <span>

#include "hetlora/app/experiment.hpp"

namespace hetlora {

/// Prints evaluation.samples replies for conversations of held-out people (chosen by hash): the last words of the
/// conversation so far, the real reply, the base's and the fine-tuned model's greedy ones. Nothing if samples = 0.
/// @param global canonical form at rank_max
void print_samples(Experiment& experiment, std::span<const double> global, Terminal& terminal);

}  // namespace hetlora
