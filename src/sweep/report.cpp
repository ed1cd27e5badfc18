// See hetlora/sweep/report.hpp.
#include "hetlora/sweep/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "hetlora/base/text.hpp"

namespace hetlora::sweep {
namespace {

constexpr std::size_t few = 12;  // runs in a list that is not asked to be complete

std::string loss_text(double loss) { return std::isfinite(loss) ? fmt::format("{:.4f}", loss) : "-"; }

std::size_t label_width(const SweepPlan& plan) {
    std::size_t width = 3;
    for (const auto& run : plan.runs) width = std::max(width, run.folder.filename().string().size());
    return width;
}

/// Seconds of all runs that are not done, one after another; NaN if unknown.
double work_left_s(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs) {
    double seconds = 0;
    for (std::size_t i = 0; i < plan.runs.size(); ++i) seconds += costs.seconds_left(plan.runs[i], states[i]);
    return seconds;
}

std::int64_t cores_of(const PlannedRun& run, std::int64_t mpi_ranks) {
    return mpi_ranks * std::max<std::int64_t>(1, run.settings.compute.threads);
}

std::string evidence_text(const Costs& costs, const SweepPlan& plan) {
    std::int64_t measured = 0;
    std::map<std::string, bool> seen;
    for (const auto& run : plan.runs) {
        if (seen.emplace(run.cost_key, true).second && costs.of(run).finished_runs) ++measured;
    }
    return fmt::format("{} of {} kinds of runs known{}", costs.known_kinds(), costs.kinds(),
                       measured > 0 ? fmt::format(", {} from finished runs", measured) : "");
}

}  // namespace

Counts count(const std::vector<FolderState>& states) {
    Counts counts{};
    for (const auto& state : states) ++counts[static_cast<std::size_t>(state.state)];
    return counts;
}

std::string counts_text(const Counts& counts) {
    std::string text;
    for (std::size_t s = 0; s < counts.size(); ++s) {
        if (counts[s] == 0) continue;
        text += fmt::format("{}{} {}", text.empty() ? "" : ", ", counts[s], state_name(static_cast<State>(s)));
    }
    return text.empty() ? "no runs" : text;
}

std::int64_t side_by_side(const Machine& machine, const SweepPlan& plan, const Costs& costs) {
    std::int64_t cores = 1;
    for (const auto& run : plan.runs) cores = std::max(cores, cores_of(run, machine.mpi_ranks));
    std::int64_t fit = std::max<std::int64_t>(1, machine.cores / cores);
    const std::int64_t memory = costs.largest_memory_bytes(plan) * machine.mpi_ranks;
    if (memory > 0 && machine.free_memory_bytes > 0) fit = std::min(fit, machine.free_memory_bytes / memory);
    if (machine.max_parallel > 0) fit = std::min(fit, machine.max_parallel);
    return std::max<std::int64_t>(1, fit);
}

std::string plan_text(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs,
                      const Machine& machine, bool all) {
    const auto width = label_width(plan);
    std::string text = fmt::format("sweep {}: {} ({}){} in {}\n", plan.sweep.name,
                                   counted(std::ssize(plan.runs), "run"), counts_text(count(states)),
                                   plan.excluded > 0 ? fmt::format(", {} left out by [exclude]", plan.excluded) : "",
                                   plan.sweep.output.string());
    text +=
        fmt::format("\n  {:>5}  {:<{}}  {:<8}  {:>10}  {}\n", "no.", "folder", width, "state", "time left", "settings");
    const std::size_t shown = all || plan.runs.size() <= few ? plan.runs.size() : few;
    for (std::size_t i = 0; i < shown; ++i) {
        const auto& run = plan.runs[i];
        const double left = costs.seconds_left(run, states[i]);
        text += fmt::format("  {:>5}  {:<{}}  {:<8}  {:>10}  {}\n", i + 1, run.folder.filename().string(), width,
                            state_name(states[i].state), human_seconds(left), run.text);
    }
    if (shown < plan.runs.size()) text += fmt::format("  ... and {} more (--all)\n", plan.runs.size() - shown);

    const double work_s = work_left_s(plan, states, costs);
    if (!std::isfinite(work_s)) {
        return text +
               "\nTime and memory are not known: nothing is finished or measured yet (plan without "
               "--no-calibrate measures).\n";
    }
    const std::int64_t fit = side_by_side(machine, plan, costs);
    double longest_s = 0;
    double core_s = 0;
    bool on_gpu = false;
    for (std::size_t i = 0; i < plan.runs.size(); ++i) {
        const double left = costs.seconds_left(plan.runs[i], states[i]);
        longest_s = std::max(longest_s, left);
        core_s += left * static_cast<double>(cores_of(plan.runs[i], machine.mpi_ranks));
        on_gpu = on_gpu || costs.of(plan.runs[i]).on_gpu;
    }
    text += fmt::format("\n  time left   about {} on this machine, {} side by side on {} core{} ({})\n",
                        human_seconds(std::max(longest_s, work_s / static_cast<double>(fit))), fit, machine.cores,
                        machine.cores == 1 ? "" : "s", evidence_text(costs, plan));
    text += fmt::format("  work        {:.2f} {}\n",
                        on_gpu ? work_s * static_cast<double>(machine.mpi_ranks) / 3600 : core_s / 3600,
                        on_gpu ? "GPU-hours (one GPU for each MPI rank)" : "core-hours");
    if (const auto memory = costs.largest_memory_bytes(plan); memory > 0) {
        text += fmt::format(
            "  memory      {} for the largest run{}\n", human_bytes(static_cast<double>(memory * machine.mpi_ranks)),
            machine.free_memory_bytes > 0
                ? fmt::format(", {} free here", human_bytes(static_cast<double>(machine.free_memory_bytes)))
                : "");
    }
    return text;
}

std::string status_text(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs, bool all) {
    const auto counts = count(states);
    const auto running = counts[static_cast<std::size_t>(State::running)];
    const double work_s = work_left_s(plan, states, costs);
    std::string text =
        fmt::format("sweep {}: {} of {} done ({})", plan.sweep.name, counts[static_cast<std::size_t>(State::done)],
                    counted(std::ssize(plan.runs), "run"), counts_text(counts));
    if (work_s > 0) {
        text += running > 0 ? fmt::format("; about {} left with {} side by side",
                                          human_seconds(work_s / static_cast<double>(running)), running)
                            : fmt::format("; about {} of work left", human_seconds(work_s));
    } else if (!std::isfinite(work_s)) {
        text += "; time left not known yet";
    }
    text += fmt::format("\n  folder {}\n", plan.sweep.output.string());
    const auto width = label_width(plan);
    const auto line = [&](std::size_t i) {
        const auto& state = states[i];
        const auto left = state.state == State::running ? human_seconds(state.seconds_left) : std::string();
        text += fmt::format("  {:<{}}  {:<8} {:>11}  {:>8}  {}\n", plan.runs[i].folder.filename().string(), width,
                            state_name(state.state), fmt::format("{}/{}", state.round, state.rounds),
                            loss_text(state.eval_loss), state.reason.empty() ? left : state.reason);
    };
    const auto list = [&](State wanted, const char* title) {
        if (counts[static_cast<std::size_t>(wanted)] == 0) return;
        text += fmt::format("\n  {} (round, evaluation loss{})\n", title,
                            wanted == State::running  ? ", left"
                            : wanted == State::failed ? ", reason"
                                                      : "");
        std::size_t shown = 0;
        for (std::size_t i = 0; i < states.size(); ++i) {
            if (states[i].state == wanted && shown++ < few) line(i);
        }
        if (shown > few) text += fmt::format("  ... and {} more (--all)\n", shown - few);
    };
    if (all) {
        text += fmt::format("\n  {:<{}}  {:<8} {:>11}  {:>8}\n", "run", width, "state", "round", "loss");
        for (std::size_t i = 0; i < states.size(); ++i) line(i);
    } else {
        list(State::running, "running");
        list(State::failed, "failed (go again with --retry-failed)");
        list(State::died, "died (go on with the next start)");
    }
    if (!plan.foreign.empty()) {
        text += fmt::format("\n  {} more run{} in the folder {} not in this sweep as it is now\n", plan.foreign.size(),
                            plan.foreign.size() == 1 ? "" : "s", plan.foreign.size() == 1 ? "is" : "are");
    }
    return text;
}

std::string status_json(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs) {
    using Json = nlohmann::ordered_json;
    const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); };
    const auto counts = count(states);
    Json out;
    out["sweep"] = plan.sweep.name;
    out["output"] = plan.sweep.output.string();
    for (int s = 0; s < n_states; ++s) {
        out["counts"][std::string(state_name(static_cast<State>(s)))] = counts[static_cast<std::size_t>(s)];
    }
    out["foreign"] = plan.foreign.size();
    out["work_left_s"] = number(work_left_s(plan, states, costs));
    out["runs"] = Json::array();
    for (std::size_t i = 0; i < plan.runs.size(); ++i) {
        const auto& run = plan.runs[i];
        const auto& state = states[i];
        out["runs"].push_back({{"folder", run.folder.string()},
                               {"label", run.label},
                               {"settings", run.text},
                               {"identity", run.identity},
                               {"state", state_name(state.state)},
                               {"round", state.round},
                               {"rounds", state.rounds},
                               {"train_loss", number(state.train_loss)},
                               {"eval_loss", number(state.eval_loss)},
                               {"seconds_left", number(costs.seconds_left(run, state))},
                               {"host", state.host},
                               {"job_id", state.job_id},
                               {"reason", state.reason}});
    }
    return out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace hetlora::sweep
