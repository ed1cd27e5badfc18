// Recognises processes that a launcher started as a group but that MPI does not connect.
#include <array>
#include <cstdlib>

#include "hetlora/comm/mpi_transport.hpp"

namespace hetlora {

namespace {

long number(const char* text) { return text == nullptr ? 0 : std::strtol(text, nullptr, 10); }

bool any_set(const EnvironmentLookup& lookup, std::initializer_list<const char*> names) {
    for (const char* name : names) {
        if (lookup(name) != nullptr) return true;
    }
    return false;
}

constexpr const char* slurm_mend =
    "start it with 'srun --mpi=pmix hetlora ...' ('srun --mpi=list' shows what this Slurm offers) or with "
    "'mpirun hetlora ...' inside the job; for independent single runs use 'srun --ntasks=1' or a job array";

}  // namespace

void check_launch(int mpi_size, const EnvironmentLookup& lookup) {
    if (mpi_size > 1) return;
    const bool under_mpirun = lookup("OMPI_COMM_WORLD_SIZE") != nullptr;

    // Only inside a job step: a batch script also has SLURM_NTASKS, and a bare start in it is one process.
    const bool in_step = lookup("SLURM_STEP_ID") != nullptr || lookup("SLURM_STEPID") != nullptr;
    long slurm_tasks = number(lookup("SLURM_STEP_NUM_TASKS"));
    if (slurm_tasks == 0) slurm_tasks = number(lookup("SLURM_NTASKS"));
    if (in_step && slurm_tasks > 1 && !under_mpirun) {
        if (mpi_size == 0) {
            // Before MPI_Init: Open MPI would end in a long message of its own when srun offers no PMI at all.
            if (any_set(lookup, {"PMIX_RANK", "PMIX_NAMESPACE", "PMI_RANK", "PMI_FD", "PMI_CONTROL_PORT", "PMI_JOBID",
                                 "PALS_RANKID"})) {
                return;
            }
            throw environment_error("Slurm started {} tasks (job step {}) without a way for MPI to connect them - {}",
                                    slurm_tasks, lookup("SLURM_STEP_ID") ? lookup("SLURM_STEP_ID") : "?", slurm_mend);
        }
        throw environment_error(
            "Slurm started {} tasks but MPI sees only this one, so each would run the whole experiment - {}",
            slurm_tasks, slurm_mend);
    }
    if (mpi_size == 0) return;

    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"}) {
        const long tasks = number(lookup(name));
        if (tasks > 1) {
            throw environment_error(
                "the launcher started {} processes ({}) but MPI sees only this one - use the mpirun that belongs to "
                "the MPI library hetlora was built with ({})",
                tasks, name, MpiSession::library_version());
        }
    }
}

}  // namespace hetlora
