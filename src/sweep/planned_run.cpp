// See hetlora/sweep/planned_run.hpp.
#include "hetlora/sweep/planned_run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <sstream>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/ini_reader.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/sweep/content_hashes.hpp"
#include "hetlora/sweep/expansion.hpp"

namespace hetlora::sweep {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t hash_digits = 8;
constexpr std::size_t most_problems = 5;

/// The base config with the lines of some keys blanked; line numbers stay.
class BaseText {
public:
    explicit BaseText(const SweepFile& sweep) : text_(sweep.base_text) {
        std::vector<std::string> sections;
        for (const auto& key : config_schema()) {
            if (sections.empty() || sections.back() != key.section) sections.push_back(key.section);
        }
        for (const auto& entry : read_ini(text_, sections).entries) line_of_[entry.full_name] = entry.line;
    }

    const std::string& without(const std::set<std::string>& keys) {
        auto [found, is_new] = made_.try_emplace(keys);
        if (!is_new) return found->second;
        std::set<int> blank;
        for (const auto& key : keys) {
            if (const auto line = line_of_.find(key); line != line_of_.end()) blank.insert(line->second);
        }
        std::istringstream lines(text_);
        int number = 0;
        for (std::string line; std::getline(lines, line);)
            found->second += (blank.contains(++number) ? "" : line) + "\n";
        return found->second;
    }

private:
    const std::string& text_;
    std::map<std::string, int> line_of_;
    std::map<std::set<std::string>, std::string> made_;
};

/// Problems of many runs, each told once with the first combination that has it.
class Problems {
public:
    void add(const std::string& error, const std::string& combination) {
        std::istringstream lines(error);
        for (std::string line; std::getline(lines, line);) {
            if (!line.starts_with("  ")) continue;
            const auto [found, is_new] = at_.try_emplace(line, list_.size());
            if (is_new) list_.push_back({line, combination, 0});
            ++list_[found->second].runs;
        }
    }

    void throw_if_any(const SweepFile& sweep, std::size_t runs) const {
        if (list_.empty()) return;
        std::string text = fmt::format("{}: {} problem{} in the {} runs of the sweep:", sweep.file.string(),
                                       list_.size(), list_.size() == 1 ? "" : "s", runs);
        for (std::size_t i = 0; i < std::min(list_.size(), most_problems); ++i) {
            text += fmt::format("\n{}\n    in {} of the runs, first with {}", list_[i].text, list_[i].runs,
                                list_[i].combination);
        }
        if (list_.size() > most_problems) text += fmt::format("\n  and {} more", list_.size() - most_problems);
        throw Error(ExitCode::usage, text);
    }

private:
    struct Problem {
        std::string text;
        std::string combination;
        std::int64_t runs;
    };
    std::vector<Problem> list_;
    std::map<std::string, std::size_t> at_;
};

/// What decides how long a run takes and how much memory it needs.
std::string cost_key(const Settings& settings, const std::string& base, const std::string& data) {
    static const std::array keys = {"experiment.rounds",
                                    "experiment.clients_per_round",
                                    "model.precision",
                                    "data.sequence_length",
                                    "data.overlap",
                                    "data.partition",
                                    "data.partition_clients",
                                    "data.min_windows",
                                    "data.max_windows_per_client",
                                    "lora.targets",
                                    "lora.rank_max",
                                    "lora.dropout",
                                    "local.steps",
                                    "local.epochs",
                                    "local.batch_size",
                                    "local.optimizer",
                                    "strategy.preset",
                                    "evaluation.every",
                                    "evaluation.sequences",
                                    "evaluation.part",
                                    "evaluation.clients",
                                    "compute.device",
                                    "compute.threads",
                                    "compute.pack_tokens",
                                    "compute.vector",
                                    "compute.gemm",
                                    "compute.recompute",
                                    "comm.reduction",
                                    "output.trace"};  // clang-format keeps it readable
    std::string text = base + data;
    for (const char* name : keys) {
        const auto* key = find_config_key(name);
        if (key != nullptr) text += fmt::format("|{}", config_text(key->get(settings)));
    }
    return sha256_hex(text).substr(0, 16);
}

/// Folders of runs below the sweep's, by the hash at the end of their names.
std::multimap<std::string, fs::path> folders_by_hash(const fs::path& output) {
    std::multimap<std::string, fs::path> found;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(output, error)) {
        const auto name = entry.path().filename().string();
        if (name.size() < hash_digits + 2 || name[name.size() - hash_digits - 1] != '_') continue;
        const auto hash = name.substr(name.size() - hash_digits);
        if (hash.find_first_not_of("0123456789abcdef") == std::string::npos) found.emplace(hash, entry.path());
    }
    return found;
}

constexpr std::string_view identity_mark = "# identity ";

/// The identity that a request.ini (or any config.ini) opens with; "" if there is none.
std::string identity_in(const fs::path& file) {
    std::error_code error;
    if (!fs::exists(file, error)) return {};
    const auto text = read_text_file(file, ExitCode::environment);
    if (!text.starts_with(identity_mark)) return {};
    return text.substr(identity_mark.size(), text.find('\n') - identity_mark.size());
}

std::string identity_of_folder(const fs::path& folder) {
    const auto found = identity_in(folder / "request.ini");
    return found.empty() ? identity_in(folder / "config.ini") : found;
}

/// Finds the run's folder among those with its digits, and takes it out of them. @return whether there is one
bool take_folder(std::multimap<std::string, fs::path>& folders, const std::string& hash, PlannedRun& run) {
    const auto [from, to] = folders.equal_range(hash);
    for (auto at = from; at != to; ++at) {
        const auto identity = identity_of_folder(at->second);
        if (identity == run.identity || (identity.empty() && at->second == run.folder)) {
            run.folder = at->second;
            folders.erase(at);
            return true;
        }
        if (at->second != run.folder) continue;  // another run of the same digits: it has a label of its own
        throw usage_error(
            "{} holds another run than the sweep's {} ({}): identity {}, not {}; move it away, or give the "
            "sweep another folder (--output)",
            run.folder.string(), run.label, run.text, identity, run.identity);
    }
    return false;
}

std::string request_text(const PlannedRun& run, const SweepFile& sweep, const Settings& settings) {
    return resolved_ini(settings,
                        fmt::format("identity {}\nsweep {}: {}\nStart or continue: hetlora run --config {} "
                                    "--output {} --resume",
                                    run.identity, sweep.name, run.text, run.request().string(), run.folder.string()));
}

/// The number that a request sets this key to; 0 if there is none. The two keys asked for are in one section only.
std::int64_t number_in(const std::string& request, std::string_view key) {
    const auto mark = fmt::format("\n{} = ", key);
    const auto at = request.find(mark);
    if (at == std::string::npos) return 0;
    const auto from = at + mark.size();
    return parse_integer(std::string_view(request).substr(from, request.find('\n', from) - from)).value_or(0);
}

}  // namespace

SweepPlan make_plan(SweepFile sweep, std::int64_t automatic_threads) {
    if (const auto run = describe_run_folder(sweep.output); !run.empty()) {
        throw usage_error(
            "{} holds a run ({}), not a sweep: choose another folder (sweep.name, sweep.output or --output)",
            sweep.output.string(), run);
    }
    SweepPlan plan{.sweep = std::move(sweep), .runs = {}, .excluded = 0, .foreign = {}};
    const SweepFile& file = plan.sweep;
    const Expansion expansion = expand(file);
    plan.excluded = expansion.excluded;
    BaseText base(file);
    Problems problems;
    for (const auto& combination : expansion.combinations) {
        try {
            plan.runs.push_back(
                {.label = combination.label,
                 .text = combination.text,
                 .identity = {},
                 .folder = {},
                 .settings = load_settings_text(base.without(combination.left_out), file.base.string(),
                                                combination.overrides, RequiredFor::run, file.file.string()),
                 .cost_key = {}});
        } catch (const Error& error) {
            problems.add(error.what(), combination.text);
        }
    }
    problems.throw_if_any(file, expansion.combinations.size());

    ContentHashes hashes(file.output / ".hashes.json");
    auto folders = folders_by_hash(file.output);
    std::map<std::string, const PlannedRun*> seen;
    for (auto& run : plan.runs) {
        Settings& settings = run.settings;
        const auto base_sha256 = hashes.of_base(settings.model.path);
        const auto data_sha256 = hashes.of_data(settings.data.path);
        run.identity = identity_hash(settings, base_sha256, data_sha256);
        const auto [first, is_new] = seen.try_emplace(run.identity, &run);
        if (!is_new) {
            throw usage_error(
                "{}: two runs are the same run (identity {}): \"{}\" and \"{}\"; what differs between them "
                "changes no result (docs/configuration.md): take one out, or leave it out by [exclude]",
                file.file.string(), run.identity.substr(0, hash_digits), first->second->text, run.text);
        }
        const auto hash = run.identity.substr(0, hash_digits);
        run.folder = file.output / fmt::format("{}_{}", run.label, hash);
        run.folder_exists = take_folder(folders, hash, run);
        settings.experiment.name = run.folder.filename().string();
        settings.output.dir = run.folder;
        run.threads_open = settings.compute.threads == 0;
        if (run.threads_open) settings.compute.threads = automatic_threads;
        run.cost_key = cost_key(settings, base_sha256, data_sha256);
    }
    hashes.save();
    for (auto& [hash, folder] : folders) plan.foreign.push_back(std::move(folder));
    return plan;
}

void write_request(const PlannedRun& run, const SweepFile& sweep) {
    create_folder(run.folder);
    auto settings = run.settings;
    std::string before;
    std::error_code error;
    if (std::filesystem::exists(run.request(), error)) before = read_text_file(run.request(), ExitCode::environment);
    // Never fewer rounds than the run has: its log holds them.
    try {
        const auto status = read_status(run.folder / "status.json");
        settings.experiment.rounds = std::max(settings.experiment.rounds, status.round);
    } catch (const Error&) {  // it has none yet
    }
    // Another number of threads may round differently: what has begun keeps its own.
    const auto threads = number_in(before, "threads");
    if (run.threads_open && threads > 0 && holds_run(run.folder)) settings.compute.threads = threads;
    const auto text = request_text(run, sweep, settings);
    if (text != before) write_file_atomically(run.request(), text);
}

}  // namespace hetlora::sweep
