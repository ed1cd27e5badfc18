// Processes that a launcher started as a group but that MPI does not connect must not all run the experiment.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "hetlora/comm/mpi_transport.hpp"

namespace hetlora {
namespace {

std::string complaint(int mpi_size, const std::map<std::string, std::string>& environment) {
    try {
        check_launch(mpi_size, [&](const char* name) {
            const auto found = environment.find(name);
            return found == environment.end() ? nullptr : found->second.c_str();
        });
        return "";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::environment);
        return error.what();
    }
}

TEST(LaunchCheck, a_bare_start_is_one_process) {
    EXPECT_EQ(complaint(0, {}), "");
    EXPECT_EQ(complaint(1, {}), "");
}

TEST(LaunchCheck, a_bare_start_in_a_batch_script_is_one_process) {
    EXPECT_EQ(complaint(1, {{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}}), "");
}

TEST(LaunchCheck, srun_without_pmi_is_named_with_its_mend) {
    const std::map<std::string, std::string> step{{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}};
    EXPECT_NE(complaint(0, step).find("srun --mpi=pmix"), std::string::npos);
    EXPECT_NE(complaint(1, step).find("Slurm started 4 tasks"), std::string::npos);
    EXPECT_EQ(complaint(4, step), "");
}

TEST(LaunchCheck, srun_with_pmix_goes_on_to_mpi_init) {
    EXPECT_EQ(complaint(0, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"PMIX_RANK", "1"}}), "");
}

TEST(LaunchCheck, mpirun_of_one_inside_a_step_is_fine) {
    EXPECT_EQ(complaint(1, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"OMPI_COMM_WORLD_SIZE", "1"}}), "");
}

TEST(LaunchCheck, an_mpirun_of_another_library_is_named) {
    EXPECT_NE(complaint(1, {{"PMI_SIZE", "3"}}).find("started 3 processes"), std::string::npos);
}

}  // namespace
}  // namespace hetlora
