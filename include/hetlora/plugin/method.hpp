// What a plugin is written against: `[strategy] plugin = PATH` takes parts of a federated method from a shared library.
// Only LibTorch and the standard library are needed here; nothing of the program is linked. examples/cpp-plugin is one.
//
//   select    root, before a round    which slots of the global adapter each client of the round trains
//   weight    root, after training    one number per client
//   merge     root, after training    all clients' factors and weights -> the new global factors
//   penalty   every MPI rank, once a local step: a loss on the clients' factors, differentiated by autograd
//
// Shape letters: C clients, M adapted matrices, R rank_max, W slots of a pack's adapters, D d_in, O d_out. The adapter
// of a matrix adds scale * B A to its weight; slot i is row i of A [R, D] and column i of B [O, R]. On root tensors are
// float64 on the CPU; in penalty they have the adapters' dtype and device. A function refuses by throwing a
// std::exception: the run ends on every MPI rank with its text.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/headeronly/version.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace hetlora::plugin {

/// A and B of one matrix; of many clients with a dimension C in front.
struct Factors {
    at::Tensor a;  ///< [R, D], or [C, R, D]
    at::Tensor b;  ///< [O, R], or [C, O, R]
};

/// What a run tells its plugin before the first round.
struct RunFacts {
    std::vector<std::string> matrices;  ///< names, e.g. "model.layers.0.self_attn.q_proj"
    std::int64_t rank_min = 0;
    std::int64_t rank_max = 0;
    std::int64_t rounds = 0;
    double scale = 1.0;  ///< s of the global adapter, at rank_max
};

struct SelectContext {
    std::int64_t round = 0;       ///< from 1
    std::uint64_t seed = 0;       ///< of this round, for whoever draws: the same for any number of MPI ranks
    at::Tensor client_C;          ///< int64
    at::Tensor lora_rank_C;       ///< int64: how many slots each one gets
    std::vector<Factors> global;  ///< by matrix
};

/// Clients that were left out of the round are not in it.
struct WeightContext {
    std::int64_t round = 0;
    at::Tensor client_C;            ///< int64
    at::Tensor n_samples_C;         ///< training windows
    at::Tensor n_tokens_C;          ///< int64: loss tokens trained on in the round
    at::Tensor lora_rank_before_C;  ///< int64: as received
    at::Tensor lora_rank_after_C;   ///< int64: as sent, after pruning
    at::Tensor loss_first_C;        ///< mean loss of the first local step
    at::Tensor loss_last_C;
    at::Tensor train_loss_C;             ///< mean over the round's loss tokens
    at::Tensor product_norm_squared_CM;  ///< ||B_m A_m||_F^2 of what it sent, without the scale
};

/// Clients that were left out of the round are not in it.
struct MergeContext {
    std::int64_t round = 0;
    std::uint64_t seed = 0;  ///< of this round
    at::Tensor client_C;     ///< int64
    at::Tensor lora_rank_C;  ///< int64: as sent
    at::Tensor n_samples_C;
    at::Tensor scale_C;            ///< s that each one trained with
    at::Tensor weight_C;           ///< sums to 1
    at::Tensor has_slot_CR;        ///< bool; slots that a client lacks are 0 in `factors`
    std::vector<Factors> factors;  ///< by matrix, with C in front, slots at their places in the global adapter
    std::vector<Factors> global;   ///< by matrix: what was sent out
};

/// Clients of one pack whose adapters have one width. Slots from a client's lora_rank on are 0 and stay 0.
struct PenaltyContext {
    std::int64_t round = 0;
    std::int64_t step = 0;          ///< of this round, from 1
    at::Tensor client_C;            ///< int64
    at::Tensor lora_rank_C;         ///< int64
    std::vector<Factors> factors;   ///< by matrix, with C in front and W slots; part of an autograd graph
    std::vector<Factors> received;  ///< the same as it came from the server, without a graph
};

/// Thrown while a plugin is made: the machine lacks something that it needs (the run ends with exit code 4).
class MissingEnvironment : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// The parts that a plugin provides; the others stay those of the preset.
struct Parts {
    bool select = false;
    bool weight = false;
    bool merge = false;
    bool penalty = false;
};

/// A federated method, or a part of one. The program calls the functions named in parts(), from one thread.
class Method {
public:
    virtual ~Method() = default;
    [[nodiscard]] virtual Parts parts() const = 0;
    /// Called once, on every MPI rank.
    virtual void start(const RunFacts&) {}
    /// @return bool [C, R]: the slots of each client, lora_rank of them
    virtual at::Tensor select(const SelectContext&) { return {}; }
    /// @return [C], finite and >= 0; if all are 0, clients count equally
    virtual at::Tensor weight(const WeightContext&) { return {}; }
    /// @return the new global factors of every matrix, finite
    virtual std::vector<Factors> merge(const MergeContext&) { return {}; }
    /// @return [C]: what is added to each client's loss. Its gradient counts before clipping; it is not in the log. A
    ///         client's number must depend on its own factors only.
    virtual at::Tensor penalty(const PenaltyContext&) { return {}; }
};

/// Raised when a struct or a function above changes.
inline constexpr std::int32_t interface_version = 1;

/// What a plugin was compiled against. The program compares it with its own before it calls anything else.
struct Abi {
    std::int32_t interface_version;
    std::int32_t torch_major, torch_minor;
    std::int32_t cxx11_abi;  ///< of the standard library's strings
    const char* compiler;    ///< for messages
};

/// The Abi of whoever compiles this.
constexpr Abi own_abi{interface_version, TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, _GLIBCXX_USE_CXX11_ABI, __VERSION__};

}  // namespace hetlora::plugin

#define HETLORA_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

// The three functions that a plugin exports, here for a class with a default constructor. hetlora_plugin_create gets
// the path in the config; what it throws ends the run with its text.
#define HETLORA_PLUGIN(MethodClass)                                                                                 \
    HETLORA_PLUGIN_EXPORT const hetlora::plugin::Abi* hetlora_plugin_abi() { return &hetlora::plugin::own_abi; }    \
    HETLORA_PLUGIN_EXPORT hetlora::plugin::Method* hetlora_plugin_create(const char*) { return new MethodClass(); } \
    HETLORA_PLUGIN_EXPORT void hetlora_plugin_destroy(hetlora::plugin::Method* method) { delete method; }
