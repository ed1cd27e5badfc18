#include "hetlora/app/resume.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "hetlora/app/build_info.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/config/schema.hpp"
#include "hetlora/cuda/device.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/tensor/kernels.hpp"

namespace hetlora {
namespace {

constexpr const char* config_text_name = "config";
constexpr const char* identity_text_name = "identity";

/// What is chosen automatically, and what that is called in a config.
struct AutomaticKey {
    const char* name;
    const char* automatic;
};
constexpr std::array automatic_keys{AutomaticKey{"compute.device", "auto"}, AutomaticKey{"compute.threads", "0"},
                                    AutomaticKey{"compute.pack_tokens", "auto"}, AutomaticKey{"compute.vector", "auto"},
                                    AutomaticKey{"compute.gemm", "auto"}};

/// False where a processor or a machine does not have what the run began with.
bool is_possible_here(std::string_view name, std::string_view value) {
    if (name == "compute.vector" && value == "avx512") return best_vector_level() >= VectorLevel::avx512;
    if (name == "compute.vector" && value == "avx2") return best_vector_level() >= VectorLevel::avx2;
    return name != "compute.device" || value != "cuda" || cuda::available();
}

/// The lowest committed number of rounds that a checkpoint of this round needs: row 0 and one per round.
std::int64_t rows_of(const Checkpoint& checkpoint) { return checkpoint.round + 1; }

/// Lines that only one of the two texts has.
std::vector<std::string> differences(const std::string& before, const std::string& now) {
    const auto lines_of = [](const std::string& text) {
        const auto lines = split(text, '\n');
        return std::set<std::string>(lines.begin(), lines.end());
    };
    const auto a = lines_of(before);
    const auto b = lines_of(now);
    std::vector<std::string> found;
    for (const auto& line : a) {
        if (!b.contains(line)) found.push_back("then " + line);
    }
    for (const auto& line : b) {
        if (!a.contains(line)) found.push_back("now " + line);
    }
    return found;
}

[[nodiscard]] Error another_run(const RunFolder& folder, const std::vector<std::string>& what_differs) {
    return usage_error(
        "the folder '{}' holds another run{}; choose another folder (experiment.name or --output), or give the run's "
        "own config: {}",
        folder.path().string(), what_differs.empty() ? "" : " with other settings: " + join(what_differs, ", "),
        folder.config_ini().string());
}

/// A complete run is left alone without loading anything; only its settings are compared, by the hashes of then.
void check_settings_of_complete_run(const ResumePoint& point, const Settings& settings) {
    const auto checkpoint = newest_checkpoint(point.folder->checkpoints()).checkpoint;
    if (!checkpoint || !checkpoint->texts.contains(identity_text_name)) return;
    const auto text = [&](const char* name) {
        const auto found = checkpoint->texts.find(name);
        return found == checkpoint->texts.end() ? std::string() : found->second;
    };
    const std::string now = identity_text(settings, text("base_sha256"), text("data_sha256"));
    if (now != text(identity_text_name)) throw another_run(*point.folder, differences(text(identity_text_name), now));
}

/// Passes over checkpoints that are ahead of both copies of the log (a power failure can lose unsynced rows).
void choose_checkpoint(ResumePoint& point) {
    const auto checkpoints = point.folder->checkpoints();
    FoundCheckpoint found = newest_checkpoint(checkpoints);
    for (const auto& sentence : found.damaged) point.notes.push_back(sentence + " - an older one is used");
    const auto rounds = checkpoint_rounds(checkpoints);
    for (auto round = rounds.rbegin(); found.checkpoint && round != rounds.rend(); ++round) {
        if (rows_of(*found.checkpoint) <= std::ssize(point.committed.records)) break;
        point.notes.push_back(fmt::format(
            "the checkpoint of round {} is newer than the log, which has lost rounds after {}; an older one is used",
            found.checkpoint->round, std::ssize(point.committed.records) - 1));
        if (*round >= found.checkpoint->round) continue;
        try {
            found.checkpoint = read_checkpoint(checkpoint_folder(checkpoints, *round));
        } catch (const Error& error) {
            point.notes.emplace_back(error.what());
        }
    }
    if (found.checkpoint && rows_of(*found.checkpoint) <= std::ssize(point.committed.records)) {
        point.checkpoint = std::move(found.checkpoint);
        point.round = point.checkpoint->round;
    } else if (!rounds.empty()) {
        throw input_error(
            "no checkpoint in '{}' can be used ({}); to run it again from the beginning, without what its log holds, "
            "remove the run's folder",
            checkpoints.string(), point.notes.empty() ? "none is readable" : join(point.notes, "; "));
    }
}

ResumePoint look(const Settings& settings) {
    ResumePoint point;
    const auto& dir = settings.output.dir;
    if (!holds_run(dir)) {
        point.notes.push_back(fmt::format("there is no run in '{}' yet: starting it", dir.string()));
        return point;
    }
    point.folder.emplace(RunFolder::reopen(dir));
    remove_unfinished_checkpoints(point.folder->checkpoints());
    point.committed = read_committed_rounds(*point.folder);
    if (std::filesystem::exists(point.folder->complete()) &&
        std::ssize(point.committed.records) > settings.experiment.rounds) {
        point.complete = true;
        check_settings_of_complete_run(point, settings);
        point.notes.push_back(fmt::format("the run in '{}' is complete: {}, {} asked for; nothing is done",
                                          dir.string(), counted(std::ssize(point.committed.records) - 1, "round"),
                                          settings.experiment.rounds));
        return point;
    }
    choose_checkpoint(point);
    if (!point.checkpoint && std::filesystem::exists(point.folder->complete())) {
        throw input_error(
            "the run in '{}' is complete, but has no checkpoint: it cannot go on to more rounds - its results are "
            "untouched - choose another folder (--output)",
            dir.string());
    }
    if (point.checkpoint && point.round > settings.experiment.rounds) {
        throw usage_error(
            "the run in '{}' is at round {} already, but experiment.rounds = {}: ask for at least as many rounds",
            dir.string(), point.round, settings.experiment.rounds);
    }
    if (!point.checkpoint) {
        point.notes.push_back(fmt::format("the run in '{}' never came to a checkpoint: it begins anew", dir.string()));
    }
    return point;
}

/// Takes over what the run's first start chose. @return what the user chose differently
std::vector<std::string> take_choices(Settings& settings, const std::string& resolved) {
    const Settings before = load_settings_text(resolved, "the checkpoint's config");
    std::vector<std::string> notes;
    for (const auto& [name, automatic] : automatic_keys) {
        const ConfigKey& key = *find_config_key(name);
        const std::string now = config_text(key.get(settings));
        const std::string then = config_text(key.get(before));
        if (now == then) continue;
        if ((now == automatic || now == key.default_text) && is_possible_here(name, then)) {
            (void)key.set(settings, then);
        } else {
            notes.push_back(fmt::format(
                "{} = {}, but the run began with {}: its last bits may differ from those of an uninterrupted run", name,
                now, then));
        }
    }
    return notes;
}

}  // namespace

ResumePoint find_resume_point(Transport& transport, Settings& settings) {
    ResumePoint point;
    std::string resolved;
    agree(transport, "looking for a run to go on with", [&] {
        if (!transport.is_root()) return;
        point = look(settings);
        if (point.checkpoint) resolved = point.checkpoint->texts[config_text_name];
    });
    std::array<std::int64_t, 3> told{point.complete ? 1 : 0, point.round, std::ssize(resolved)};
    transport.broadcast_values(told);
    point.complete = told[0] != 0;
    point.round = told[1];
    resolved.resize(static_cast<std::size_t>(told[2]));
    transport.broadcast_values(resolved);
    agree(transport, "taking over what the run chose", [&] {
        if (resolved.empty()) return;
        for (auto& note : take_choices(settings, resolved)) point.notes.push_back(std::move(note));
    });
    return point;
}

void check_same_run(const ResumePoint& point, const Experiment& experiment) {
    const Settings& settings = experiment.settings;
    const std::string run_id = identity_hash(settings, experiment.base_sha256, experiment.data_sha256);
    std::string before;
    std::string identity;
    if (point.checkpoint) {
        before = point.checkpoint->run_id;
        const auto found = point.checkpoint->texts.find(identity_text_name);
        if (found != point.checkpoint->texts.end()) identity = found->second;
    } else {
        before = read_status(point.folder->status()).run_id;  // written before every other file
    }
    if (before == run_id) return;
    throw another_run(*point.folder, identity.empty()
                                         ? std::vector<std::string>()
                                         : differences(identity, identity_text(settings, experiment.base_sha256,
                                                                               experiment.data_sha256)));
}

namespace {

/// A changed frozen matrix in a checkpoint.
std::string base_name(const AdapterLayout& layout, std::size_t matrix) {
    return "base/" + layout.matrices[matrix].name;
}

void restore_private_rounds(Transport& transport, Experiment& experiment, const ResumePoint& point) {
    if (!experiment.strategy.is_personal()) return;
    std::vector<std::int64_t> rounds(static_cast<std::size_t>(experiment.population->size()));
    agree(transport, "restoring what clients keep for themselves", [&] {
        if (!transport.is_root()) return;
        const auto found = point.checkpoint->integers.find("private_rounds");
        if (found == point.checkpoint->integers.end() || found->second.size() != rounds.size()) {
            throw input_error("the checkpoint of round {} in '{}' does not name its clients' own factors: start anew",
                              point.round, point.folder->checkpoints().string());
        }
        rounds = found->second;
    });
    transport.broadcast_values(rounds);
    agree(transport, "restoring what clients keep", [&] { experiment.population->restore_private_rounds(rounds); });
}

void restore_base(Transport& transport, Experiment& experiment, const ResumePoint& point) {
    if (!experiment.strategy.updates_base()) return;
    const AdapterLayout& layout = experiment.layout;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        std::vector<double> values(static_cast<std::size_t>(layout.matrices[m].d_out * layout.matrices[m].d_in));
        agree(transport, "restoring the base", [&] {
            if (!transport.is_root()) return;
            const std::string name = base_name(layout, m);
            std::vector<double> stored = stored_base(*point.checkpoint, name);
            if (stored.size() != values.size()) {
                throw input_error("the checkpoint of round {} in '{}' has no changed {}: start anew in another folder",
                                  point.round, point.folder->checkpoints().string(), name);
            }
            values = std::move(stored);
        });
        transport.broadcast_values(values);
        agree(transport, "restoring the base", [&] { experiment.engine->set_base_matrix(m, values); });
    }
}

/// A checkpoint's name of a tensor of the base.
std::string weight_name(const std::string& name) { return "base/" + name; }

void restore_weights(Transport& transport, Experiment& experiment, const ResumePoint& point) {
    if (!experiment.strategy.trains_base()) return;
    for (const auto& [name, tensor] : named_weights(experiment.engine->weights())) {
        std::vector<double> values(static_cast<std::size_t>(tensor.numel()));
        agree(transport, "restoring the weights", [&] {
            if (!transport.is_root()) return;
            if (values = stored_base(*point.checkpoint, weight_name(name)); std::ssize(values) == tensor.numel())
                return;
            throw input_error("the checkpoint of round {} in '{}' has no trained {}: start anew in another folder",
                              point.round, point.folder->checkpoints().string(), name);
        });
        transport.broadcast_values(values);
        experiment.engine->set_weight(name, values);
    }
}

}  // namespace

std::vector<double> stored_base(const Checkpoint& checkpoint, const std::string& name) {
    if (const auto wide = checkpoint.numbers.find(name); wide != checkpoint.numbers.end()) return wide->second;
    if (const auto narrow = checkpoint.floats.find(name); narrow != checkpoint.floats.end()) {
        return {narrow->second.begin(), narrow->second.end()};
    }
    return {};
}

CarriedState carried_state(const Experiment& experiment, std::int64_t round, const ServerState& server,
                           const std::vector<double>& base_losses) {
    CarriedState state{.round = round,
                       .server = server,
                       .base_losses = base_losses,
                       .lora_ranks = experiment.population->lora_ranks(),
                       .private_rounds = {},
                       .base = {},
                       .weights = {}};
    if (experiment.strategy.is_personal()) state.private_rounds = experiment.population->private_rounds();
    for (std::size_t m = 0; experiment.strategy.updates_base() && m < experiment.layout.matrices.size(); ++m) {
        state.base.push_back(experiment.engine->base_matrix(m));
    }
    if (experiment.strategy.trains_base()) {
        for (const auto& [name, tensor] : named_weights(experiment.engine->weights()))
            state.weights.push_back({name, tensor.clone(at::MemoryFormat::Contiguous)});
    }
    return state;
}

Checkpoint make_checkpoint(const Experiment& experiment, const CarriedState& state) {
    const Settings& settings = experiment.settings;
    Checkpoint checkpoint{
        .round = state.round,
        .run_id = identity_hash(settings, experiment.base_sha256, experiment.data_sha256),
        .creator_version = build_info::version,
        .texts = {{config_text_name, resolved_ini(settings)},
                  {identity_text_name, identity_text(settings, experiment.base_sha256, experiment.data_sha256)},
                  {"base_sha256", experiment.base_sha256},
                  {"data_sha256", experiment.data_sha256}},
        .numbers = {{"global", state.server.global}},
        .integers = {{"lora_ranks", state.lora_ranks}}};
    if (!state.base_losses.empty()) checkpoint.numbers["base_losses"] = state.base_losses;
    if (!state.server.head.empty()) checkpoint.numbers["class_head"] = state.server.head;
    if (!state.server.moment1.empty()) checkpoint.numbers["server_moment1"] = state.server.moment1;
    if (!state.server.moment2.empty()) checkpoint.numbers["server_moment2"] = state.server.moment2;
    if (!state.private_rounds.empty()) checkpoint.integers["private_rounds"] = state.private_rounds;
    if (!state.base.empty()) checkpoint.integers["base_delta_bytes"] = {state.server.base_delta_bytes};
    for (std::size_t m = 0; m < state.base.size(); ++m) {
        const std::string name = base_name(experiment.layout, m);
        if (settings.model.precision == Precision::fp64) {
            checkpoint.numbers[name] = state.base[m];
        } else {
            checkpoint.floats[name].assign(state.base[m].begin(), state.base[m].end());
        }
    }
    for (const auto& [name, tensor] : state.weights) {
        const auto copy_to = [&]<typename T>(std::vector<T>& values) {
            const T* first = tensor.const_data_ptr<T>();
            values.assign(first, first + tensor.numel());
        };
        if (settings.model.precision == Precision::fp64) {
            copy_to(checkpoint.numbers[weight_name(name)]);
        } else {
            copy_to(checkpoint.floats[weight_name(name)]);
        }
    }
    return checkpoint;
}

CarriedState restore_checkpoint(Transport& transport, Experiment& experiment, const ResumePoint& point) {
    CarriedState state{.round = point.round,
                       .server = {.global = std::vector<double>(static_cast<std::size_t>(
                                      experiment.layout.parameters(experiment.settings.lora.rank_max)))},
                       .base_losses = {},
                       .lora_ranks = {},
                       .private_rounds = {},
                       .base = {},
                       .weights = {}};
    if (experiment.head) state.server.head = experiment.head->get(0);  // its size, on every mpi_rank
    auto lora_ranks = experiment.population->lora_ranks();
    std::array<std::int64_t, 1> n_base{0};
    agree(transport, "restoring the checkpoint", [&] {
        if (!transport.is_root()) return;
        const Checkpoint& checkpoint = *point.checkpoint;
        const auto global = checkpoint.numbers.find("global");
        const auto ranks = checkpoint.integers.find("lora_ranks");
        if (global == checkpoint.numbers.end() || global->second.size() != state.server.global.size() ||
            ranks == checkpoint.integers.end() || ranks->second.size() != lora_ranks.size()) {
            throw input_error(
                "the checkpoint of round {} in '{}' does not fit the run's model or data; it may come from another "
                "version of hetlora: start anew in another folder",
                point.round, point.folder->checkpoints().string());
        }
        state.server.global = global->second;
        const auto optional = [&](const char* name) {
            const auto found = checkpoint.numbers.find(name);
            return found == checkpoint.numbers.end() ? std::vector<double>() : found->second;
        };
        const std::vector<double> head = optional("class_head");
        if (head.size() != state.server.head.size()) {
            throw input_error(
                "the checkpoint of round {} in '{}' has a classification head of {} values, and the run's has {}: "
                "start "
                "anew in another folder",
                point.round, point.folder->checkpoints().string(), head.size(), state.server.head.size());
        }
        state.server.head = head;
        state.server.moment1 = optional("server_moment1");
        state.server.moment2 = optional("server_moment2");
        const auto bytes = checkpoint.integers.find("base_delta_bytes");
        if (bytes != checkpoint.integers.end() && bytes->second.size() == 1) {
            state.server.base_delta_bytes = bytes->second.front();
        }
        lora_ranks = ranks->second;
        state.base_losses = optional("base_losses");
        n_base[0] = std::ssize(state.base_losses);
    });
    transport.broadcast_values(n_base);
    state.base_losses.resize(static_cast<std::size_t>(n_base[0]));
    transport.broadcast_values(state.base_losses);
    transport.broadcast_values(lora_ranks);
    agree(transport, "restoring the lora_ranks", [&] { experiment.population->restore_lora_ranks(lora_ranks); });
    restore_private_rounds(transport, experiment, point);
    restore_base(transport, experiment, point);
    restore_weights(transport, experiment, point);
    return state;
}

}  // namespace hetlora
