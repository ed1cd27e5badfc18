// The text of a submission's script: see hetlora/sweep/submission.hpp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/sweep/submission.hpp"
#include "sbatch_body.hpp"

namespace hetlora::sweep {
namespace {

/// The word as the shell reads it back.
std::string quoted(const std::string& word) {
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

/// Half as long again as predicted, and five minutes; in whole minutes. An hour where nothing is known.
std::string time_limit(double seconds) {
    if (!std::isfinite(seconds)) return "01:00:00";
    const auto minutes = static_cast<std::int64_t>(std::ceil(seconds * 1.5 / 60.0)) + 5;
    return fmt::format("{:02}:{:02}:00", minutes / 60, minutes % 60);
}

std::string body() {
    constexpr std::string_view mark = "# --- body ---\n";
    const std::string_view whole = sweep_sbatch;
    const auto at = whole.find(mark);
    if (at == std::string_view::npos) throw bug_error("jobs/sweep.sbatch has no line '# --- body ---'");
    return std::string(whole.substr(at));
}

}  // namespace

std::string sbatch_script(const ScriptFacts& facts, const SubmitOptions& options) {
    const SiteProfile& site = options.profile;
    std::string text = fmt::format(
        "#!/bin/bash\n# Sweep {}: {} run{} in {} array task{}{}. Written by `hetlora sweep submit`; may be edited and "
        "submitted\n# again by hand (sbatch THIS_FILE): complete runs are passed over.\n#\n",
        facts.sweep_name, facts.n_runs, facts.n_runs == 1 ? "" : "s", facts.n_tasks, facts.n_tasks == 1 ? "" : "s",
        site.name.empty() ? "" : ", site " + site.name);
    const auto option = [&](const char* name, const std::string& value) {
        const char* quote = value.find_first_of(" \t'") != std::string::npos ? "\"" : "";
        if (!value.empty()) text += fmt::format("#SBATCH --{}={}{}{}\n", name, quote, value, quote);
    };
    option("job-name", "hetlora-" + facts.sweep_name);
    option("array",
           fmt::format("0-{}{}", facts.n_tasks - 1, options.throttle > 0 ? fmt::format("%{}", options.throttle) : ""));
    option("partition", site.partition);
    option("account", site.account);
    option("qos", site.qos);
    option("constraint", site.constraint);
    option("nodes", site.nodes.empty() ? "1" : site.nodes);
    option("ntasks", fmt::format("{}", options.mpi_ranks));
    option("cpus-per-task", fmt::format("{}", std::max(site.cpus_per_task, facts.threads)));
    option("gpus-per-node", site.gpus_per_node);
    option("gpu-bind", site.gpu_bind);
    if (!site.mem.empty()) {
        option("mem", site.mem);
    } else if (facts.peak_memory_bytes > 0) {  // a quarter more than predicted, and 512 MiB
        option("mem", fmt::format("{}M", facts.peak_memory_bytes * 5 / 4 / (1 << 20) + 512));
    }
    option("time", site.time.empty() ? time_limit(facts.longest_task_s) : site.time);
    // Without B: the signal goes to the tasks of srun. mpirun is no step of Slurm's: the script gets it and passes it
    // on.
    option("signal", fmt::format("{}USR2@{}", site.launcher == "mpirun" ? "B:" : "", site.signal_lead_s));
    text += "#SBATCH --requeue\n#SBATCH --open-mode=append\n";
    std::string folder;  // sbatch puts its own things in the place of %x
    for (const char c : facts.folder.string()) folder += c == '%' ? std::string("%%") : std::string(1, c);
    option("output", folder + "/task_%a.out");
    for (const auto& extra : site.extra) text += fmt::format("#SBATCH {}\n", extra);
    text += fmt::format("\nTASKS_FILE={}\nHETLORA={}\nLAUNCHER={}\nMPI_RANKS={}\nMAX_REQUEUES={}\n",
                        quoted((facts.folder / "tasks.tsv").string()), quoted(facts.program), site.launcher,
                        options.mpi_ranks, site.max_requeues);
    if (!site.scratch.empty()) text += fmt::format("export TMPDIR=\"{}\"\nmkdir -p \"$TMPDIR\"\n", site.scratch);
    if (!site.setup.empty()) text += "\n# setup of the site profile\n";
    for (const auto& line : site.setup) text += line + "\n";
    return text + "\n" + body();
}

}  // namespace hetlora::sweep
