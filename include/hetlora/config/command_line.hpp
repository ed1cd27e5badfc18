// The command line: `hetlora VERB [arguments]`, its help texts, and what is wrong with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// One option of a verb.
struct CommandFlag {
    std::string name;      ///< "--config"
    std::string argument;  ///< "FILE"; empty: takes none
    std::string help;      ///< one line
};

/// One verb.
struct CommandVerb {
    std::string name;
    std::string usage;  ///< what follows the verb, e.g. "--config FILE [section.key=value ...]"
    std::string help;   ///< one line
    std::vector<CommandFlag> flags;
    bool implemented = false;
    bool in_python = false;       ///< handed over to the Python package with all its arguments
    bool takes_settings = false;  ///< words are section.key=value; otherwise they are positional
    std::size_t min_words = 0;    ///< positional words
    std::size_t max_words = 0;
};

/// All verbs, known and implemented ones, in the order of the help text.
[[nodiscard]] const std::vector<CommandVerb>& command_verbs();

/// A parsed command line. Members that a verb does not take stay empty.
struct CommandLine {
    std::string verb;  ///< empty where only help or the version is asked for
    bool help = false;
    bool version = false;
    bool reference = false;   ///< check --reference: print the reference config file
    bool print_json = false;  ///< strategies --json: the table for other programs
    bool resume = false;
    bool merged = false;
    std::optional<std::filesystem::path> config = std::nullopt;
    std::optional<std::filesystem::path> adapter = std::nullopt;
    std::optional<std::filesystem::path> output = std::nullopt;  ///< --output; it is among the overrides, too
    std::optional<std::filesystem::path> to = std::nullopt;
    std::optional<std::filesystem::path> exit_file = std::nullopt;
    std::optional<std::int64_t> mpi_ranks = std::nullopt;
    std::optional<std::int64_t> round = std::nullopt;
    std::optional<std::string> prompt = std::nullopt;
    std::optional<std::filesystem::path> json = std::nullopt;
    std::optional<std::int64_t> seconds = std::nullopt;
    // Of sweep.
    bool retry_failed = false;
    bool dry_run = false;
    bool no_calibrate = false;
    bool all = false;
    std::optional<std::int64_t> cores = std::nullopt;
    std::optional<std::int64_t> max_parallel = std::nullopt;
    std::optional<std::int64_t> throttle = std::nullopt;
    std::optional<std::int64_t> task_minutes = std::nullopt;
    std::optional<std::filesystem::path> profile = std::nullopt;
    /// section.key=value in the order given, --set and --output included; for load_settings()
    std::vector<std::string> overrides = {};
    std::vector<std::string> words = {};        ///< positional words
    std::vector<std::string> python_args = {};  ///< everything after a verb of the Python package

    bool operator==(const CommandLine&) const = default;
};

/// Parses the words after the program's name.
/// @param verbs  for tests
/// @throws Error(usage) for an unknown or not yet implemented verb, an unknown option (with the nearest name), a
///         missing argument, or a wrong number of words
[[nodiscard]] CommandLine parse_command_line(const std::vector<std::string>& arguments,
                                             const std::vector<CommandVerb>& verbs = command_verbs());

/// Help for the program (empty verb) or for one verb; ends with a line break.
[[nodiscard]] std::string help_text(std::string_view verb = {},
                                    const std::vector<CommandVerb>& verbs = command_verbs());

}  // namespace hetlora
