// See hetlora/store/run_folder.hpp.
#include "hetlora/store/run_folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/progress_clock.hpp"

namespace hetlora {

namespace {

namespace fs = std::filesystem;

/// Each of these says that a folder holds a run. status.json is not among them: a refused or failed start may leave
/// one.
constexpr std::array run_files{"run.h5",   "COMPLETE",      "config.ini", "config.json", "progress.jsonl",
                               "trace.h5", "trace_weights", "adapter",    "checkpoint"};

std::string found_run_files(const fs::path& folder) {
    std::string found;
    for (const char* name : run_files) {
        std::error_code ignored;
        if (fs::exists(fs::symlink_status(folder / name, ignored)))
            found += (found.empty() ? "" : ", ") + std::string(name);
    }
    return found;
}

/// The run's status, if there is a readable one.
std::string status_sentence(const fs::path& folder) {
    try {
        const RunStatus status = read_status(folder / "status.json");
        return fmt::format("run '{}', {}, round {} of {}, host {}, pid {}{}, last change {}", status.run_id,
                           run_state_name(status.state), status.round, status.rounds, status.host, status.pid,
                           status.job_id.empty() ? "" : ", job " + status.job_id, status.updated_utc);
    } catch (const Error&) {
        return "";
    }
}

constexpr const char* lock_name = ".lock";

std::optional<RunStatus> status_in(const fs::path& folder) {
    try {
        return read_status(folder / "status.json");
    } catch (const Error&) {
        return std::nullopt;
    }
}

/// True if this process belongs to the Slurm job that the folder's last process belonged to.
bool is_own_job(const fs::path& folder) {
    const auto status = status_in(folder);
    const std::string mine = status_of_this_process().job_id;
    return status && !mine.empty() && status->job_id == mine;
}

/// Seconds since the last heartbeat; infinite if there never was one.
double heartbeat_age_s(const fs::path& folder) {
    struct stat about {};
    if (::stat((folder / lock_name).c_str(), &about) != 0) return std::numeric_limits<double>::infinity();
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count() -
           static_cast<double>(about.st_mtim.tv_sec);
}

/// A process on another host, of another job, seems to be at work here. On this host the lock itself tells.
bool beats_elsewhere(const fs::path& folder) {
    const auto status = status_in(folder);
    return status && status->state == RunState::running && status->host != status_of_this_process().host &&
           !is_own_job(folder) && heartbeat_age_s(folder) < heartbeat_stale_s;
}

}  // namespace

bool holds_run(const fs::path& folder) { return !found_run_files(folder).empty(); }

bool is_run_folder_in_use(const fs::path& folder) {
    const int file = ::open((folder / lock_name).c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        const auto status = status_in(folder);  // a file that may not be read: only its time of change tells
        return errno == EACCES && status && status->state == RunState::running &&
               heartbeat_age_s(folder) < heartbeat_stale_s;
    }
    const bool held = ::flock(file, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    ::close(file);
    return held || beats_elsewhere(folder);
}

std::string describe_run_folder(const fs::path& folder) {
    const std::string found = found_run_files(folder);
    if (found.empty()) return "";
    const std::string status = status_sentence(folder);
    return status.empty() ? "a run without a readable status.json: " + found : status;
}

RunFolder::RunFolder(fs::path path, int lock_file, bool locked) noexcept
    : path_(std::move(path)), lock_file_(lock_file), locked_(locked) {}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)), lock_file_(std::exchange(other.lock_file_, -1)), locked_(other.locked_) {}

RunFolder& RunFolder::operator=(RunFolder&& other) noexcept {
    if (this != &other) {
        release();
        path_ = std::move(other.path_);
        lock_file_ = std::exchange(other.lock_file_, -1);
        locked_ = other.locked_;
    }
    return *this;
}

RunFolder::~RunFolder() { release(); }

void RunFolder::release() noexcept {
    // The file stays: removing it would let two processes lock two different files of that name.
    if (lock_file_ >= 0) ::close(lock_file_);
    lock_file_ = -1;
}

RunFolder RunFolder::lock(const fs::path& folder, double takeover_wait_s) {
    const fs::path path = folder / lock_name;
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        throw environment_error(
            "cannot write in the run folder '{}' - {} - choose a folder that you may write (--output), "
            "or mend its permissions",
            folder.string(), std::strerror(errno));
    }
    RunFolder locked(folder, file, true);
    // Whoever only looks (a sweep's status) holds the lock for a moment: a second of patience.
    const double patience_s = is_own_job(folder) ? std::max(1.0, takeover_wait_s) : 1.0;
    const auto give_up_at = std::chrono::steady_clock::now() + std::chrono::duration<double>(patience_s);
    while (::flock(file, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            if (std::chrono::steady_clock::now() < give_up_at) {
                std::this_thread::sleep_for(std::chrono::milliseconds(100));
                continue;
            }
            const std::string status = status_sentence(folder);
            throw usage_error(
                "another process works in the run folder '{}' ({}) - its .lock is held - wait until it ends, or "
                "choose another folder (experiment.name or --output)",
                folder.string(), status.empty() ? "it has written no status yet" : status);
        }
        if (errno != ENOLCK && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) {
            throw environment_error("cannot lock '{}' - {} - choose another folder (--output)", path.string(),
                                    std::strerror(errno));
        }
        locked.locked_ = false;
        break;
    }
    if (beats_elsewhere(folder)) {
        throw usage_error(
            "a process on another node works in the run folder '{}' ({}) - its last sign of life is less than {:.0f} s "
            "old - wait until it ends (or, if it is dead, a minute), or choose another folder (--output)",
            folder.string(), status_sentence(folder), heartbeat_stale_s);
    }
    (void)::futimens(file, nullptr);
    return locked;
}

RunFolder RunFolder::create(const fs::path& folder) {
    std::error_code error;
    const fs::file_status status = fs::status(folder, error);
    if (fs::exists(status) && !fs::is_directory(status)) {
        throw usage_error(
            "the run folder '{}' is a file - output - choose another name (experiment.name or --output), or "
            "remove the file",
            folder.string());
    }
    fs::create_directories(folder, error);
    if (error) {
        throw environment_error(
            "cannot create the run folder '{}' - {} - choose a folder that you may write (--output), or "
            "mend its permissions",
            folder.string(), error.message());
    }
    RunFolder locked = lock(folder, 0.0);
    if (const std::string run = describe_run_folder(folder); !run.empty()) {
        throw usage_error(
            "the folder '{}' holds another run ({}) - found {} there - choose "
            "another name (experiment.name or --output), or remove the folder",
            folder.string(), run, found_run_files(folder));
    }
    return locked;
}

RunFolder RunFolder::reopen(const fs::path& folder, double takeover_wait_s) {
    std::error_code error;
    if (!fs::is_directory(folder, error) || found_run_files(folder).empty()) {
        throw usage_error(
            "there is no run to go on with - folder '{}' - check experiment.name or --output, or start the run "
            "without --resume",
            folder.string());
    }
    return lock(folder, takeover_wait_s);
}

void RunFolder::write_config(std::string_view ini, std::string_view json) const {
    write_file_atomically(config_ini(), ini);
    try {
        write_file_atomically(config_json(), json);
    } catch (...) {
        std::error_code ignored;
        fs::remove(config_ini(), ignored);
        throw;
    }
}

void RunFolder::write_adapter(const AdapterLayout& layout, std::span<const double> values,
                              const AdapterExport& about) const {
    write_peft_adapter(adapter(), layout, values, about);
}

void RunFolder::mark_complete(std::string_view text) const {
    write_file_atomically(complete(),
                          fmt::format("{}\n{}{}", utc_now(), text, text.empty() || text.back() == '\n' ? "" : "\n"));
}

void RunFolder::clear_complete() const {
    std::error_code error;
    fs::remove(complete(), error);
    if (error) {
        throw environment_error("cannot remove '{}' - {} - mend its permissions", complete().string(), error.message());
    }
}

void RunFolder::clear_run() const {
    for (const char* name : run_files) {
        std::error_code error;
        fs::remove_all(path_ / name, error);
        if (error) {
            throw environment_error("cannot remove '{}' - {} - mend its permissions", (path_ / name).string(),
                                    error.message());
        }
    }
}

struct Heartbeat::Beat {
    std::mutex mutex;
    std::condition_variable wake;
    bool ended = false;
    std::thread thread;
};

Heartbeat::Heartbeat(const RunFolder& folder, double every_s) : beat_(std::make_unique<Beat>()) {
    beat_->thread = std::thread([beat = beat_.get(), path = folder.path() / lock_name, every_s] {
        std::unique_lock guard(beat->mutex);
        while (!beat->wake.wait_for(guard, std::chrono::duration<double>(every_s), [beat] { return beat->ended; })) {
            (void)::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // a missed beat is made up by the next
        }
    });
}

Heartbeat::~Heartbeat() {
    {
        const std::scoped_lock guard(beat_->mutex);
        beat_->ended = true;
    }
    beat_->wake.notify_all();
    beat_->thread.join();
}

}  // namespace hetlora
