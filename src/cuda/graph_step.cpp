// Recording and replaying; the one file that needs CUDA's headers.
#include "hetlora/cuda/graph_step.hpp"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "hetlora/cuda/device.hpp"

namespace at::cuda {
// ATen/cuda/CUDAContextLight.h declares it beside much that needs more headers than the wheels bring.
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);
}  // namespace at::cuda

namespace hetlora::cuda {
namespace {

/// Shapes that are kept; the oldest goes first. A graph holds its temporaries' memory.
constexpr std::size_t most_graphs = 8;
/// Keys of steps that ran once, waiting for their second time.
constexpr std::size_t most_seen = 64;

/// The batch's tensors at addresses of their own.
TokenBatch fixed_copy(const TokenBatch& batch) {
    TokenBatch copy = batch;
    for (at::Tensor* x :
         {&copy.token_N, &copy.position_N, &copy.place_N, &copy.loss_row_L, &copy.target_L, &copy.row_scale_L}) {
        if (x->defined()) *x = x->clone();
    }
    return copy;
}

void copy_values(const TokenBatch& from, TokenBatch& to) {
    to.token_N.copy_(from.token_N);
    to.position_N.copy_(from.position_N);
    if (to.place_N.defined()) to.place_N.copy_(from.place_N);
    to.loss_row_L.copy_(from.loss_row_L);
    to.target_L.copy_(from.target_L);
    to.row_scale_L.copy_(from.row_scale_L);
}

struct RecordedStep {
    std::vector<std::int64_t> key;
    TokenBatch batch;
    RowLossTensors losses;
    at::cuda::CUDAGraph graph;
};

class GraphRunner final : public StepRunner {
public:
    RowLossTensors train(Engine& engine, const TokenBatch& batch, double dropout) override {
        if (disabled_ || dropout > 0.0 || batch.cache != nullptr || !batch.token_N.is_cuda()) {
            return engine.train_on_device(batch, dropout);
        }
        engine.settle();
        if (engine.activation_bytes() != arena_bytes_) {  // the arenas moved: every recorded address is stale
            recorded_.clear();
            arena_bytes_ = engine.activation_bytes();
        }
        std::vector<std::int64_t> key = step_key(batch);
        const auto known = std::ranges::find(
            recorded_, key, [](const auto& step) -> const auto& { return step->key; });
        if (known != recorded_.end()) return replay(**known, batch);
        if (std::ranges::find(seen_, key) == seen_.end()) {  // a shape that never comes back is not worth a graph
            seen_.push_back(std::move(key));
            if (seen_.size() > most_seen) seen_.pop_front();
            return engine.train_on_device(batch, dropout);
        }
        try {
            recorded_.push_back(record(engine, batch, std::move(key)));
        } catch (const c10::Error& error) {
            TORCH_WARN("a training step could not be recorded as a CUDA graph, steps run one by one from now on: ",
                       error.what_without_backtrace());
            disabled_ = true;
            recorded_.clear();
            return engine.train_on_device(batch, dropout);
        }
        if (recorded_.size() > most_graphs) recorded_.pop_front();
        return replay(*recorded_.back(), batch);
    }

private:
    static RowLossTensors replay(RecordedStep& step, const TokenBatch& batch) {
        copy_values(batch, step.batch);
        step.graph.replay();
        return step.losses;
    }

    static std::unique_ptr<RecordedStep> record(Engine& engine, const TokenBatch& batch,
                                                std::vector<std::int64_t> key) {
        auto step = std::make_unique<RecordedStep>();
        step->key = std::move(key);
        step->batch = fixed_copy(batch);
        synchronise();
        const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());  // the default stream cannot record
        step->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
        try {
            step->losses = engine.train_on_device(step->batch);
        } catch (...) {
            try {
                step->graph.capture_end();  // leaves the stream usable
            } catch (const c10::Error&) {   // the first error is the one to report
            }
            throw;
        }
        step->graph.capture_end();
        synchronise();
        return step;
    }

    std::deque<std::unique_ptr<RecordedStep>> recorded_;
    std::deque<std::vector<std::int64_t>> seen_;
    std::int64_t arena_bytes_ = -1;
    bool disabled_ = false;
};

}  // namespace

bool built_with_graphs() { return true; }

std::string device_name(at::Device device) {
    return fmt::format("{} ({})", device.str(), at::cuda::getDeviceProperties(device.index())->name);
}

std::unique_ptr<StepRunner> make_graph_runner() { return std::make_unique<GraphRunner>(); }

}  // namespace hetlora::cuda
