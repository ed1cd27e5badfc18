// See hetlora/sweep/costs.hpp.
#include "hetlora/sweep/costs.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/sweep/process.hpp"

namespace hetlora::sweep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t most_evidence = 5;  // finished runs of a kind whose logs are read
constexpr std::size_t most_logs = 64;     // in all
constexpr double usual_start_s = 2.0;     // where nothing was measured

double number(const Json& in, const char* name, double otherwise) {
    const auto found = in.find(name);
    return found != in.end() && found->is_number() ? found->get<double>() : otherwise;
}

/// What `hetlora plan --json` wrote.
Cost cost_in(const Json& in) {
    Cost cost;
    cost.seconds_start = number(in, "seconds_start", usual_start_s);
    cost.seconds_rounds = number(in, "seconds_total", not_measured) - cost.seconds_start;
    cost.peak_memory_bytes = static_cast<std::int64_t>(number(in, "peak_memory_bytes", 0));
    const auto device = in.find("device");
    cost.on_gpu = device != in.end() && device->is_string() && device->get<std::string>().starts_with("cuda");
    return cost;
}

/// An unfinished file of this process in the temporary folder.
struct TemporaryFile {
    fs::path path;
    explicit TemporaryFile(const std::string& name) : path(fs::temp_directory_path() / name) {}
    ~TemporaryFile() {
        std::error_code ignored;
        fs::remove(path, ignored);
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
};

Cost measure(const PlannedRun& run, std::int64_t mpi_ranks) {
    const TemporaryFile config(fmt::format("hetlora-sweep-{}-{}.ini", run.identity.substr(0, 16), ::getpid()));
    const TemporaryFile json(fmt::format("hetlora-sweep-{}-{}.json", run.identity.substr(0, 16), ::getpid()));
    write_file_atomically(config.path, resolved_ini(run.settings));
    const auto finished = run_process({program_path(), "plan", "--config", config.path.string(), "--mpi-ranks",
                                       fmt::format("{}", mpi_ranks), "--json", json.path.string()});
    if (!finished.ended.fine()) {
        const auto text = finished.err.empty() ? finished.ended.text() : std::string(trim(finished.err));
        throw Error(finished.ended.code == 2 || finished.ended.code == 3 ? static_cast<ExitCode>(finished.ended.code)
                                                                         : ExitCode::environment,
                    fmt::format("cannot measure what a run of the sweep costs, with {}\n{}\nWithout measuring: "
                                "--no-calibrate",
                                run.text, text));
    }
    try {
        return cost_in(Json::parse(read_text_file(json.path)));
    } catch (const nlohmann::json::exception& error) {
        throw bug_error("`hetlora plan --json` wrote no JSON ({})", error.what());
    }
}

double median(std::vector<double> values) {
    std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
    return values[values.size() / 2];
}

}  // namespace

Costs::Costs(const SweepPlan& plan, const std::vector<FolderState>& states, std::int64_t mpi_ranks)
    : cache_(plan.sweep.output / ".calibration.json"), mpi_ranks_(mpi_ranks) {
    read_cache();
    std::map<std::string, std::vector<double>> evidence;
    std::set<std::string> kinds;
    std::size_t logs = 0;
    for (std::size_t i = 0; i < plan.runs.size(); ++i) {
        const auto& run = plan.runs[i];
        if (kinds.insert(run.cost_key).second) {
            const auto found = calibrated_.find(cache_key(run.cost_key));
            if (found != calibrated_.end()) cost_of_[run.cost_key] = found->second;
        }
        auto& seen = evidence[run.cost_key];
        if (states[i].state != State::done || seen.size() >= most_evidence || logs >= most_logs) continue;
        ++logs;
        const double seconds = seconds_per_round(run.folder);
        if (std::isfinite(seconds)) seen.push_back(seconds * static_cast<double>(states[i].rounds));
    }
    kinds_ = std::ssize(kinds);
    for (auto& [key, seconds] : evidence) {
        if (seconds.empty()) continue;
        Cost& cost = cost_of_[key];
        cost.seconds_rounds = median(seconds);
        if (!std::isfinite(cost.seconds_start)) cost.seconds_start = usual_start_s;
        cost.finished_runs = true;
    }
}

void Costs::calibrate(const SweepPlan& plan, const std::vector<FolderState>& states, std::int64_t most,
                      const std::function<void(const PlannedRun&)>& announce) {
    struct Kind {
        const PlannedRun* run;
        std::int64_t count;
    };
    std::map<std::string, Kind> open;
    for (std::size_t i = 0; i < plan.runs.size(); ++i) {
        const auto& run = plan.runs[i];
        if (cost_of_.contains(run.cost_key) || states[i].state == State::done) continue;
        ++open.try_emplace(run.cost_key, Kind{.run = &run, .count = 0}).first->second.count;
    }
    std::vector<Kind> order;
    for (const auto& [key, kind] : open) order.push_back(kind);
    std::ranges::stable_sort(order, std::greater{}, &Kind::count);
    const auto first = std::min(most, static_cast<std::int64_t>(order.size()));
    order.resize(static_cast<std::size_t>(first));
    for (const auto& kind : order) {
        announce(*kind.run);
        const auto cost = measure(*kind.run, mpi_ranks_);
        calibrated_[cache_key(kind.run->cost_key)] = cost_of_[kind.run->cost_key] = cost;
        save();
    }
}

Cost Costs::of(const PlannedRun& run) const {
    if (const auto found = cost_of_.find(run.cost_key); found != cost_of_.end()) return found->second;
    Cost mean{.seconds_start = 0, .seconds_rounds = 0};
    if (cost_of_.empty()) return {};
    for (const auto& [key, cost] : cost_of_) {
        mean.seconds_start += cost.seconds_start / static_cast<double>(cost_of_.size());
        mean.seconds_rounds += cost.seconds_rounds / static_cast<double>(cost_of_.size());
        mean.peak_memory_bytes = std::max(mean.peak_memory_bytes, cost.peak_memory_bytes);
        mean.on_gpu = mean.on_gpu || cost.on_gpu;
    }
    return mean;
}

double Costs::seconds_left(const PlannedRun& run, const FolderState& state) const {
    if (state.state == State::done || state.state == State::failed) return 0;
    if (state.state == State::running && std::isfinite(state.seconds_left)) return state.seconds_left;
    const auto cost = of(run);
    const double share =
        state.rounds > 0 ? 1.0 - static_cast<double>(state.round) / static_cast<double>(state.rounds) : 1.0;
    return cost.seconds_start + std::clamp(share, 0.0, 1.0) * cost.seconds_rounds;
}

std::int64_t Costs::largest_memory_bytes(const SweepPlan& plan) const {
    std::int64_t most = 0;
    for (const auto& run : plan.runs) most = std::max(most, of(run).peak_memory_bytes);
    return most;
}

std::int64_t Costs::known_kinds() const noexcept { return std::ssize(cost_of_); }

std::string Costs::cache_key(const std::string& cost_key) const { return fmt::format("{}x{}", cost_key, mpi_ranks_); }

void Costs::read_cache() {
    try {
        std::error_code error;
        if (!fs::exists(cache_, error)) return;
        const auto content = Json::parse(read_text_file(cache_));
        for (const auto& [key, value] : content.items()) {
            const auto cost = cost_in(value);
            if (cost.known()) calibrated_[key] = cost;
        }
    } catch (const std::exception&) {  // measured anew
        calibrated_.clear();
    }
}

void Costs::save() const noexcept {
    try {
        Json content = Json::object();
        for (const auto& [key, cost] : calibrated_) {
            content[key] = {{"seconds_start", cost.seconds_start},
                            {"seconds_total", cost.seconds()},
                            {"peak_memory_bytes", cost.peak_memory_bytes},
                            {"device", cost.on_gpu ? "cuda" : "cpu"}};
        }
        create_folder(cache_.parent_path());
        write_file_atomically(cache_, content.dump(1) + "\n");
    } catch (const std::exception&) {  // it only saves time
    }
}

}  // namespace hetlora::sweep
