#include "hetlora/app/bench.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/experiment.hpp"
#include "hetlora/app/private_files.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/cuda/device.hpp"
#include "hetlora/cuda/graph_step.hpp"
#include "hetlora/tensor/frozen_linear.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {
namespace {

constexpr std::size_t n_parts = static_cast<std::size_t>(StepPart::count);

double median(std::vector<double> values) {
    std::ranges::sort(values);
    const std::size_t n = values.size();
    return n == 0 ? 0.0 : n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/// Seconds of an operation on the device, the median of a few.
template <typename Operation>
double seconds_of(Operation operation) {
    std::vector<double> seconds;
    for (int i = 0; i < 4; ++i) {
        cuda::synchronise();
        const Stopwatch watch;
        operation();
        cuda::synchronise();
        if (i > 0) seconds.push_back(watch.seconds());
    }
    return median(seconds);
}

/// Width of the square matrices whose products are the peak: large enough to fill the device.
std::int64_t peak_width(at::Device device) { return device.is_cuda() ? 8192 : 1024; }

/// FLOP/s of the best path on large square matrices: what "peak" means below.
double gemm_peak(at::ScalarType dtype, at::Device device) {
    if (device.is_cuda()) {
        const std::int64_t width = peak_width(device);
        const at::Tensor a = at::ones({width, width}, at::TensorOptions().dtype(dtype).device(device));
        at::Tensor product = at::empty_like(a);
        return 2.0 * std::pow(static_cast<double>(width), 3) / seconds_of([&] { at::mm_out(product, a, a); });
    }
    const std::array<GemmShape, 1> square{GemmShape{1024, 1024}};
    double best = 0.0;
    for (const auto& measured : measure_gemm(square, dtype, at::kCPU)) best = std::max(best, measured.flops_per_s);
    return best;
}

/// Bytes per second of a copy that does not fit into the caches, read and written bytes both counted.
double copy_bandwidth(at::Device device) {
    const at::Tensor from = at::ones({std::int64_t{32} << (device.is_cuda() ? 23 : 20)}, device);
    at::Tensor to = at::empty_like(from);
    return 2.0 * static_cast<double>(from.nbytes()) / seconds_of([&] { to.copy_(from); });
}

/// One measured round.
struct Measured {
    double round_s = 0.0;
    double train_s = 0.0;
    StepProfile profile;
};

struct Work {
    std::int64_t client_steps = 0;
    std::int64_t tokens = 0;
    std::int64_t packs = 0;
};

/// The first round of the experiment, from the initial adapter.
class FirstRound {
public:
    FirstRound(Transport& transport, Experiment& experiment)
        : transport_(transport),
          experiment_(experiment),
          init_(adapter_init_law(experiment.settings)),
          start_(experiment.start),
          accumulator_(make_accumulator(experiment)) {}

    /// @param profiled also says where the time goes; on a GPU that costs the overlap with the host
    Measured run(Work& work, bool profiled = true) {
        Population population = *experiment_.population;  // pruning changes it; every run starts from the same
        PrivateMemory private_factors;
        const RoundContext context =
            round_context(transport_, experiment_, population, accumulator_, experiment_.settings, &private_factors);
        ServerState state{.global = start_};
        Measured measured;
        active_profile = profiled ? &measured.profile : nullptr;
        const Stopwatch watch;
        const RoundOutcome outcome = run_round(context, 1, state);
        measured.round_s = watch.seconds();
        active_profile = nullptr;
        measured.train_s = outcome.t_train_s;
        work = {.client_steps = 0, .tokens = 0, .packs = std::ssize(outcome.plan.packs)};
        for (const ClientReport& report : outcome.reports) {
            work.client_steps += report.n_steps;
            work.tokens += report.n_rows;
        }
        return measured;
    }

    [[nodiscard]] double evaluation_tokens_per_s() {
        const Stopwatch watch;
        (void)evaluate_global(transport_, experiment_, start_, experiment_.evaluation_windows);
        std::int64_t rows = 0;
        for (const auto& window : experiment_.evaluation_windows) rows += window.rows;
        return static_cast<double>(rows) / watch.seconds();
    }

private:
    Transport& transport_;
    Experiment& experiment_;
    AdapterInitLaw init_;
    std::vector<double> start_;
    UploadAccumulator accumulator_;
};

struct Result {
    Work work;
    std::size_t rounds = 0;
    double start_s = 0.0;
    double round_s = 0.0;
    double train_s = 0.0;
    double peak = 0.0;
    std::int64_t peak_width = 0;
    double bandwidth = 0.0;
    double evaluation_tokens_per_s = 0.0;
    std::array<double, n_parts> seconds{};
    std::array<double, n_parts> flops{};

    [[nodiscard]] double all_flops() const { return std::accumulate(flops.begin(), flops.end(), 0.0); }
    [[nodiscard]] double share_of_peak() const { return all_flops() / train_s / peak; }
    [[nodiscard]] double per_step(double time_s) const { return 1e3 * time_s / static_cast<double>(work.client_steps); }
};

std::string table_of(const Result& result, const Settings& settings) {
    std::string text = fmt::format(
        "{} rounds of {} client steps in {} packs, {} tokens a round; {} thread{}, {}, gemm {}, kernels {}\n"
        "  one client step  {:.3f} ms in training, {:.3f} ms of the whole round; {} tokens/s\n"
        "  share of peak    {:.1f} % ({:.1f} of {:.1f} GFLOP/s; peak: {} x {} products, best path, before and "
        "after)\n"
        "  outside training {:.1f} % of a round   evaluation {} tokens/s   memory copy {:.1f} GB/s\n\n"
        "  {:<16} {:>10} {:>8} {:>9} {:>8}\n",
        result.rounds, result.work.client_steps, result.work.packs, result.work.tokens, settings.compute.threads,
        settings.compute.threads == 1 ? "" : "s", name_of(settings.model.precision), name_of(settings.compute.gemm),
        name_of(settings.compute.vector), result.per_step(result.train_s), result.per_step(result.round_s),
        human_count(static_cast<double>(result.work.tokens) / result.train_s), 100.0 * result.share_of_peak(),
        result.all_flops() / result.train_s / 1e9, result.peak / 1e9, result.peak_width, result.peak_width,
        100.0 * (1.0 - result.train_s / result.round_s), human_count(result.evaluation_tokens_per_s),
        result.bandwidth / 1e9, "part", "ms/step", "time", "GFLOP/s", "of peak");
    double named = 0.0;
    for (std::size_t p = 0; p < n_parts; ++p) {
        named += result.seconds[p];
        const double rate = result.seconds[p] > 0.0 ? result.flops[p] / result.seconds[p] : 0.0;
        text += fmt::format("  {:<16} {:>10.4f} {:>6.1f} %", name_of(static_cast<StepPart>(p)),
                            result.per_step(result.seconds[p]), 100.0 * result.seconds[p] / result.train_s);
        text += rate > 0.0 ? fmt::format(" {:>9.1f} {:>6.0f} %\n", rate / 1e9, 100.0 * rate / result.peak) : "\n";
    }
    text += fmt::format("  {:<16} {:>10.4f} {:>6.1f} %\n\n", "the rest", result.per_step(result.train_s - named),
                        100.0 * (result.train_s - named) / result.train_s);
    const std::size_t frozen = static_cast<std::size_t>(StepPart::frozen_gemm);
    const std::size_t head = static_cast<std::size_t>(StepPart::head_gemm);
    const double gemm_s = result.seconds[frozen] + result.seconds[head];
    const double ideal_s = result.all_flops() / result.peak;
    const double ideal_gemm_s = (result.flops[frozen] + result.flops[head]) / result.peak;
    text += fmt::format(
        "  limits: all FLOPs at the peak {:.3f} ms; frozen matrices and head above that {:.3f} ms; everything else "
        "{:.3f} "
        "ms",
        result.per_step(ideal_s), result.per_step(gemm_s - ideal_gemm_s),
        result.per_step(result.train_s - gemm_s - (ideal_s - ideal_gemm_s)));
    return text;
}

std::string json_of(const Result& result, const Experiment& experiment) {
    const Settings& settings = experiment.settings;
    nlohmann::ordered_json parts;
    for (std::size_t p = 0; p < n_parts; ++p) {
        parts[std::string(name_of(static_cast<StepPart>(p)))] = {{"seconds", result.seconds[p]},
                                                                 {"flops", result.flops[p]}};
    }
    const nlohmann::ordered_json out = {{"rounds", result.rounds},
                                        {"client_steps", result.work.client_steps},
                                        {"tokens", result.work.tokens},
                                        {"packs", result.work.packs},
                                        {"pack_tokens", settings.compute.pack_tokens},
                                        {"threads", settings.compute.threads},
                                        {"precision", name_of(settings.model.precision)},
                                        {"device", describe_device(experiment.engine->weights().options().device())},
                                        {"gemm", name_of(settings.compute.gemm)},
                                        {"vector", name_of(settings.compute.vector)},
                                        {"recompute", name_of(settings.compute.recompute)},
                                        {"start_s", result.start_s},
                                        {"round_s", result.round_s},
                                        {"train_s", result.train_s},
                                        {"ms_per_client_step", result.per_step(result.train_s)},
                                        {"ms_per_client_step_of_round", result.per_step(result.round_s)},
                                        {"tokens_per_s", static_cast<double>(result.work.tokens) / result.train_s},
                                        {"evaluation_tokens_per_s", result.evaluation_tokens_per_s},
                                        {"gemm_peak_flops", result.peak},
                                        {"copy_bytes_per_s", result.bandwidth},
                                        {"share_of_peak", result.share_of_peak()},
                                        {"peak_memory_bytes", peak_memory_bytes()},
                                        {"frozen_bytes", experiment.engine->frozen_bytes()},
                                        {"activation_bytes", experiment.engine->activation_bytes()},
                                        {"parts", parts}};
    return out.dump(2) + "\n";
}

}  // namespace

int run_bench(Transport& transport, const Settings& settings, const CommandLine& command, Terminal& terminal) {
    agree(transport, "reading the command line", [&] {
        if (transport.mpi_size() > 1) {
            throw usage_error(
                "bench measures one MPI rank: start it without mpirun (for several, compare t_train_s in run.h5)");
        }
        if (resolve_strategy(settings).trains_base()) {
            throw usage_error(
                "bench measures the step of adapters on a frozen base, and strategy.preset = {} trains the base: take "
                "another preset (`hetlora plan` measures this one)",
                settings.strategy.preset);
        }
    });
    const Stopwatch start;
    Experiment experiment = build_experiment(transport, settings);
    for (const auto& warning : experiment.choice.warnings) terminal.warn(warning);
    terminal.info(describe_experiment(experiment, transport));
    const at::ScalarType dtype = activation_dtype(settings.model.precision);
    Result result;
    result.start_s = start.seconds();
    FirstRound first(transport, experiment);
    (void)first.run(result.work);  // grows the arenas
    const at::Device device = experiment.engine->weights().options().device();
    result.peak_width = peak_width(device);
    const double peak_before = gemm_peak(dtype, device);
    result.bandwidth = copy_bandwidth(device);

    const double wanted_s = static_cast<double>(command.seconds.value_or(10));
    constexpr std::size_t least_rounds = 3;
    std::vector<Measured> measured;
    const Stopwatch watch;
    while (measured.size() < least_rounds || watch.seconds() < wanted_s)
        measured.push_back(first.run(result.work, /*profiled=*/!device.is_cuda()));
    result.peak = std::max(peak_before, gemm_peak(dtype, device));
    result.evaluation_tokens_per_s = first.evaluation_tokens_per_s();
    result.rounds = measured.size();
    const auto median_of = [&](auto value) {
        std::vector<double> values;
        for (const auto& m : measured) values.push_back(value(m));
        return median(std::move(values));
    };
    result.round_s = median_of([](const Measured& m) { return m.round_s; });
    result.train_s = median_of([](const Measured& m) { return m.train_s; });
    if (device.is_cuda()) {  // the parts in a round of their own: step by step, waiting for each part
        experiment.engine->set_step_runner(nullptr);
        profile_wait = cuda::synchronise;
        measured = {first.run(result.work)};
        profile_wait = nullptr;
        experiment.engine->set_step_runner(cuda::make_graph_runner());
    }
    for (std::size_t p = 0; p < n_parts; ++p) {
        result.seconds[p] = median_of([p](const Measured& m) { return m.profile.seconds[p]; });
        result.flops[p] = measured.front().profile.flops[p];
    }
    terminal.info(table_of(result, experiment.settings));
    if (command.json) write_file_atomically(*command.json, json_of(result, experiment));
    return 0;
}

}  // namespace hetlora
