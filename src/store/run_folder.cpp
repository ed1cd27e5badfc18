// See hetlora/store/run_folder.hpp.
#include "hetlora/store/run_folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
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
constexpr std::array run_files{"run.h5",         "COMPLETE", "config.ini", "config.json",
                               "progress.jsonl", "trace.h5", "adapter",    "checkpoint"};

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

}  // namespace

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

RunFolder RunFolder::lock(const fs::path& folder) {
    const fs::path path = folder / ".lock";
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        throw environment_error(
            "cannot write in the run folder '{}' - {} - choose a folder that you may write (--output), "
            "or mend its permissions",
            folder.string(), std::strerror(errno));
    }
    RunFolder locked(folder, file, true);
    if (::flock(file, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
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
    }
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
    RunFolder locked = lock(folder);
    if (const std::string run = describe_run_folder(folder); !run.empty()) {
        throw usage_error(
            "the folder '{}' holds another run ({}) - found {} there - choose "
            "another name (experiment.name or --output), or remove the folder",
            folder.string(), run, found_run_files(folder));
    }
    return locked;
}

RunFolder RunFolder::reopen(const fs::path& folder) {
    std::error_code error;
    if (!fs::is_directory(folder, error) || found_run_files(folder).empty()) {
        throw usage_error(
            "there is no run to go on with - folder '{}' - check experiment.name or --output, or start the run "
            "without --resume",
            folder.string());
    }
    return lock(folder);
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

}  // namespace hetlora
