// Where a run goes on: the run's folder, its newest good checkpoint and the rounds committed before it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_recovery.hpp"

namespace hetlora {

/// What `--resume` found. On root all of it; elsewhere only the numbers.
struct ResumePoint {
    bool complete = false;            ///< nothing is left to do
    std::int64_t round = -1;          ///< the checkpoint's; -1: begin from the start
    std::optional<RunFolder> folder;  ///< locked; empty: the folder holds no run yet
    std::optional<Checkpoint> checkpoint;
    CommittedRounds committed;
    std::vector<std::string> notes;  ///< for people
};

/// Looks at settings.output.dir and takes what was chosen automatically (threads, packs, GEMM, vector level, device)
/// over from the checkpoint into `settings`, where the config leaves it automatic.
/// @throws AgreedError (usage) if another process works there, (input) if the folder holds a run with no way to go on
[[nodiscard]] ResumePoint find_resume_point(Transport& transport, Settings& settings);

/// @throws Error (usage) naming the keys that differ if the checkpoint is of another run; call on root
void check_same_run(const ResumePoint& point, const Experiment& experiment);

/// What a run carries from round to round, beside its settings.
struct CarriedState {
    std::int64_t round = 0;           ///< last complete round
    ServerState server;               ///< global adapter and the server optimiser's moments
    std::vector<double> base_losses;  ///< every client's loss before training; empty without evaluation.clients
    std::vector<std::int64_t>
        lora_ranks;  ///< every client's after `round`: the population may be a round ahead at a stop
    std::vector<std::int64_t> private_rounds;  ///< Population::private_rounds(); empty where nothing is private
    /// The changed frozen matrices, by adapted matrix; empty where the base never changes. (Root's; the checkpoint has
    /// them as they are: a low-rank form would grow with every round.)
    std::vector<std::vector<double>> base;
    /// Copies of all weights by their Hugging Face names, where the base is trained. (Root's.)
    std::vector<NamedWeight> weights;
};
/// What is carried on after a round, taken from the experiment's population and engine. Call on root.
[[nodiscard]] CarriedState carried_state(const Experiment& experiment, std::int64_t round, const ServerState& server,
                                         const std::vector<double>& base_losses);
/// The same as a checkpoint.
[[nodiscard]] Checkpoint make_checkpoint(const Experiment& experiment, const CarriedState& state);

/// A tensor of the base in a checkpoint ("base/..."), in fp64; empty where there is none.
[[nodiscard]] std::vector<double> stored_base(const Checkpoint& checkpoint, const std::string& name);

/// Root's checkpoint into every mpi_rank's population and engine, and the returned state (`server` counts on root).
[[nodiscard]] CarriedState restore_checkpoint(Transport& transport, Experiment& experiment, const ResumePoint& point);

}  // namespace hetlora
