// status.json: see hetlora/store/progress.hpp.
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/progress_clock.hpp"
#include "json_number.hpp"

namespace hetlora {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array all_states{RunState::running, RunState::done, RunState::failed, RunState::stopped};

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

}  // namespace

std::string_view run_state_name(RunState state) noexcept {
    switch (state) {
        case RunState::running:
            return "running";
        case RunState::done:
            return "done";
        case RunState::failed:
            return "failed";
        case RunState::stopped:
            return "stopped";
    }
    return "?";
}

RunStatus status_of_this_process() {
    RunStatus status;
    std::array<char, 256> host{};
    if (::gethostname(host.data(), host.size() - 1) == 0) status.host = host.data();
    status.pid = ::getpid();
    const std::string array = environment("SLURM_ARRAY_JOB_ID");
    status.job_id = array.empty() ? environment("SLURM_JOB_ID") : array + "_" + environment("SLURM_ARRAY_TASK_ID");
    return status;
}

void write_status(const std::filesystem::path& path, const RunStatus& status) {
    Json out;
    out["state"] = run_state_name(status.state);
    out["run_id"] = status.run_id;
    out["round"] = status.round;
    out["rounds"] = status.rounds;
    out["train_loss"] = number_or_null(status.train_loss);
    out["eval_loss"] = number_or_null(status.eval_loss);
    out["seconds_left"] = number_or_null(status.seconds_left);
    out["host"] = status.host;
    out["pid"] = status.pid;
    out["job_id"] = status.job_id;
    out["message"] = status.message;
    out["updated_utc"] = utc_now();
    // A message may quote bytes of a foreign file: replace what is not UTF-8 instead of failing over a status.
    write_file_atomically(path, out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

RunStatus read_status(const std::filesystem::path& path) {
    const std::string content = read_text_file(path);
    try {
        const Json in = Json::parse(content);
        RunStatus status;
        const auto name = in.at("state").get<std::string>();
        bool known = false;
        for (const RunState state : all_states) {
            if (name == run_state_name(state)) {
                status.state = state;
                known = true;
            }
        }
        if (!known) throw input_error("unknown state '{}' - {} - remove the file", name, path.string());
        status.run_id = in.at("run_id").get<std::string>();
        status.round = in.at("round").get<std::int64_t>();
        status.rounds = in.at("rounds").get<std::int64_t>();
        status.train_loss = number_or_unmeasured(in.at("train_loss"));
        status.eval_loss = number_or_unmeasured(in.at("eval_loss"));
        status.seconds_left = number_or_unmeasured(in.at("seconds_left"));
        status.host = in.at("host").get<std::string>();
        status.pid = in.at("pid").get<std::int64_t>();
        status.job_id = in.at("job_id").get<std::string>();
        status.message = in.at("message").get<std::string>();
        status.updated_utc = in.at("updated_utc").get<std::string>();
        return status;
    } catch (const nlohmann::json::exception& error) {
        throw input_error("not a status.json ({}) - {} - remove the file", error.what(), path.string());
    }
}

}  // namespace hetlora
