// Training steps of one shape recorded once as a CUDA graph and replayed: hundreds of launches become one.
//
// A graph holds addresses. It is replayed only for a batch with the same spans, the same adapters at the same addresses
// and as many loss rows (step_key), while the engine's arenas stay where they are; the batch's own tensors are copied
// into those that were recorded. Everything else (a shape seen for the first time, dropout) runs as usual.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "hetlora/model/engine.hpp"

namespace hetlora::cuda {

/// All that a recorded step depends on, but for the values in the batch's tensors.
[[nodiscard]] std::vector<std::int64_t> step_key(const TokenBatch& batch);

/// For Engine::set_step_runner. Null where the build has no graphs.
[[nodiscard]] std::unique_ptr<StepRunner> make_graph_runner();

}  // namespace hetlora::cuda
