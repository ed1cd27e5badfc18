// Files: whole-file reads, writes that are complete or absent, and paths as people write them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "hetlora/base/error.hpp"

namespace hetlora {

/// The content of a file.
/// @throws Error(code) with path and reason if it cannot be opened or read
[[nodiscard]] std::string read_text_file(const std::filesystem::path& path, ExitCode code = ExitCode::input);

/// Replaces a file as a whole: a reader, or a restart after a crash, sees the old content or the new, never a part.
/// Writes to a temporary name in the same folder, then fsync, rename, fsync of the folder.
/// @throws Error(environment) with path and reason; the temporary file is removed and the old content stays
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> content);
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// Makes names created, renamed or removed in a folder durable (fsync of the folder).
void sync_folder(const std::filesystem::path& folder);

/// Makes a file's content durable (fsync); for files that another library wrote.
void sync_file(const std::filesystem::path& path);

/// Creates a folder and its parents; an existing one is fine.
/// @throws Error(environment) with path and reason
void create_folder(const std::filesystem::path& folder);

/// The text with every ${NAME} replaced by the environment variable; "$" without "{" stays as it is.
/// @throws Error(usage) for a variable that is not set, or a "${" that is not closed
[[nodiscard]] std::string expand_variables(std::string_view text);

/// expand_variables, and a leading "~" or "~/" replaced by $HOME.
/// @throws Error(usage) as above, for "~name", and if HOME is not set
[[nodiscard]] std::filesystem::path expand_path(std::string_view text);

/// The path made absolute against the working directory, without "." and ".." parts or a trailing slash; an empty
/// path stays empty. Symbolic links are not followed.
[[nodiscard]] std::filesystem::path absolute_path(const std::filesystem::path& path);

}  // namespace hetlora
