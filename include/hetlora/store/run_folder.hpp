// The folder of one run: created once, locked while a process works in it, never overwritten.
//
// config.ini, config.json, run.h5, progress.jsonl, status.json, trace.h5, trace_weights/, adapter/, checkpoint/,
// COMPLETE; the lock is held on the file ".lock", whose time of change is renewed every 15 s while the run goes on (a
// heartbeat: some file systems know no locks between nodes). Only the MPI root opens it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/store/run_folder_adapter.hpp"

namespace hetlora {

/// One sentence on the run that a folder holds, from its status.json and COMPLETE: "run 'demo', done, round 10 of 10,
/// last change 2026-01-31T12:34:56Z"; "" if it holds none.
[[nodiscard]] std::string describe_run_folder(const std::filesystem::path& folder);

/// True if a run folder holds files of a run.
[[nodiscard]] bool holds_run(const std::filesystem::path& folder);

/// True if a process holds the lock of this folder (seen from this node), or its heartbeat is younger than a minute
/// and status.json says that another host's process is running.
[[nodiscard]] bool is_run_folder_in_use(const std::filesystem::path& folder);

inline constexpr double heartbeat_every_s = 15.0;
/// A heartbeat older than this is no sign of life.
inline constexpr double heartbeat_stale_s = 60.0;

/// An open, locked run folder. Move-only; the lock is held until it is destroyed (or the process ends in any way).
///
/// A folder in use is refused, except for a job with the id of the job that holds it (Slurm started it again): that one
/// waits for the old process to end and takes over.
class RunFolder {
public:
    /// Creates the folder (and those above it) for a new run; an empty one, or one with other files only, is taken.
    /// @throws Error (usage) if it holds a run, another process works in it, or it is a file;
    ///         Error (environment) if it cannot be created or written.
    [[nodiscard]] static RunFolder create(const std::filesystem::path& folder);
    /// Opens the folder of an existing run to go on with it.
    /// @param takeover_wait_s how long a job waits for a process of the same job id to end
    /// @throws Error (usage) if it holds no run or another process works in it; Error (environment) as above.
    [[nodiscard]] static RunFolder reopen(const std::filesystem::path& folder, double takeover_wait_s = 60.0);

    RunFolder(RunFolder&& other) noexcept;
    RunFolder& operator=(RunFolder&& other) noexcept;
    RunFolder(const RunFolder&) = delete;
    RunFolder& operator=(const RunFolder&) = delete;
    ~RunFolder();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] std::filesystem::path config_ini() const { return path_ / "config.ini"; }
    [[nodiscard]] std::filesystem::path config_json() const { return path_ / "config.json"; }
    [[nodiscard]] std::filesystem::path run_log() const { return path_ / "run.h5"; }
    [[nodiscard]] std::filesystem::path progress() const { return path_ / "progress.jsonl"; }
    [[nodiscard]] std::filesystem::path status() const { return path_ / "status.json"; }
    [[nodiscard]] std::filesystem::path trace() const { return path_ / "trace.h5"; }
    /// Of a traced run that trains the base: a model folder for every round.
    [[nodiscard]] std::filesystem::path trace_weights() const { return path_ / "trace_weights"; }
    [[nodiscard]] std::filesystem::path adapter() const { return path_ / "adapter"; }
    [[nodiscard]] std::filesystem::path checkpoints() const { return path_ / "checkpoint"; }
    [[nodiscard]] std::filesystem::path private_factors() const { return path_ / "private"; }
    [[nodiscard]] std::filesystem::path samples() const { return path_ / "samples.jsonl"; }
    [[nodiscard]] std::filesystem::path complete() const { return path_ / "COMPLETE"; }
    /// Files that a user may put here while the run goes on: write a checkpoint now, or stop as on a signal.
    [[nodiscard]] std::filesystem::path checkpoint_request() const { return path_ / "CHECKPOINT"; }
    [[nodiscard]] std::filesystem::path stop_request() const { return path_ / "STOP"; }
    /// False where the file system knows no locks (some network ones): then nothing keeps a second writer out.
    [[nodiscard]] bool is_locked() const noexcept { return locked_; }

    /// Writes config.ini and config.json, each as a whole.
    void write_config(std::string_view ini, std::string_view json) const;
    /// Writes adapter/. @see write_peft_adapter
    void write_adapter(const AdapterLayout& layout, std::span<const double> values, const AdapterExport& about) const;
    /// Writes COMPLETE, the last file of a run: the time now and `text`.
    void mark_complete(std::string_view text) const;
    /// Removes COMPLETE, for a run that goes on to more rounds.
    void clear_complete() const;
    /// Removes log, progress, trace, adapter and checkpoints of a run that never came to its first checkpoint.
    void clear_run() const;

private:
    RunFolder(std::filesystem::path path, int lock_file, bool locked) noexcept;
    [[nodiscard]] static RunFolder lock(const std::filesystem::path& folder, double takeover_wait_s);
    void release() noexcept;

    std::filesystem::path path_;
    int lock_file_ = -1;
    bool locked_ = false;
};

/// Renews a folder's heartbeat from a thread of its own while it lives.
class Heartbeat {
public:
    explicit Heartbeat(const RunFolder& folder, double every_s = heartbeat_every_s);
    ~Heartbeat();
    Heartbeat(const Heartbeat&) = delete;
    Heartbeat& operator=(const Heartbeat&) = delete;

private:
    struct Beat;
    std::unique_ptr<Beat> beat_;
};

}  // namespace hetlora
