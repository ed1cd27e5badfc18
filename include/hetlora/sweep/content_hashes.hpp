// Hashes of bases and data, which are part of a run's identity. Reading half a gigabyte takes seconds, so they are
// kept in a file, and taken from there as long as path, size and time of change (in ns) of every file are the same.
#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace hetlora::sweep {

class ContentHashes {
public:
    /// @param cache  the file to keep them in; missing, damaged or unwritable is no error
    explicit ContentHashes(std::filesystem::path cache);
    /// As a run computes it (CheckpointFolder::sha256). @throws Error (input) as there
    [[nodiscard]] std::string of_base(const std::filesystem::path& folder);
    /// As a run computes it (CorpusFile::sha256). @throws Error (input) as there
    [[nodiscard]] std::string of_data(const std::filesystem::path& file);
    /// Writes the cache, if anything is new and its folder exists (or can be made).
    void save() const noexcept;

private:
    std::filesystem::path cache_;
    std::map<std::string, std::string> hash_of_;  ///< path with sizes and times -> hash
    std::map<std::string, std::string> known_;    ///< path -> hash, of this process: files are looked at once
    bool changed_ = false;
};

}  // namespace hetlora::sweep
