// hetlora: the program. main -> commands -> experiment -> round -> strategy; see docs/architecture.md.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "hetlora/app/commands.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/app/plan_run.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/comm/mpi_transport.hpp"

namespace {

using namespace hetlora;

int complain(const std::string& text, ExitCode code) {
    std::fprintf(stderr, "%s%s\n",
                 text.starts_with("hetlora ") ? "" : "hetlora: ", text.c_str());  // never the name twice
    return static_cast<int>(code);
}

bool started_by_launcher() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK"}) {
        if (std::getenv(name) != nullptr) return true;
    }
    return false;
}

bool is_understood(const std::vector<std::string>& words) {
    try {
        (void)parse_command_line(words);
        return true;
    } catch (const Error&) {
        return false;
    }
}

/// Runs a verb that may need all MPI ranks. Errors that all of them agreed on end in order; anything else, which only
/// this one knows of, ends the whole run at once: the others would wait for it for ever.
int run_on_all_ranks(Transport& transport, const std::vector<std::string>& words, const std::string& command_text) {
    const auto fail = [&](const std::string& text, ExitCode code) {
        if (transport.is_root() || transport.mpi_size() > 1) {
            complain(transport.mpi_size() > 1
                         ? fmt::format("MPI rank {} on {}: {}", transport.mpi_rank(),
                                       transport.hosts()[static_cast<std::size_t>(transport.mpi_rank())], text)
                         : text,
                     code);
        }
        if (transport.mpi_size() > 1) transport.abort(static_cast<int>(code));
        return static_cast<int>(code);
    };
    try {
        const CommandLine command =
            agree(transport, "reading the command line", [&] { return parse_command_line(words); });
        return run_verb(transport, command, command_text);
    } catch (const AgreedError& error) {
        if (transport.is_root()) complain(error.what(), error.code());
        transport.barrier();  // nobody leaves (and makes mpirun end the others) before root has spoken
        return static_cast<int>(error.code());
    } catch (const Error& error) {
        return fail(error.what(), error.code());
    } catch (const std::exception& error) {
        return fail(
            fmt::format(
                "internal error: {}\nThis is a bug of hetlora: please report it with the command and the config.",
                error.what()),
            ExitCode::bug);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::string command_text;
    for (int i = 0; i < argc; ++i) command_text += (i == 0 ? "" : " ") + std::string(argv[i]);
    const std::vector<std::string> words(argv + 1, argv + argc);
    try {
        // A wrong command line is told once: alone at once, under a launcher when MPI knows who is root.
        if (!started_by_launcher() || is_understood(words)) {
            const CommandLine command = parse_command_line(words);
            if (is_plain_verb(command)) return run_plain_verb(command);
            if (command.verb == "plan" && !started_by_launcher()) start_plan_under_mpirun(command, words);
        }
        prepare_process();
        const MpiSession session(&argc, &argv);
        const auto transport = make_mpi_transport(session);
        return run_on_all_ranks(*transport, words, command_text);
    } catch (const Error& error) {
        return complain(error.what(), error.code());
    } catch (const std::exception& error) {
        return complain(fmt::format("internal error: {}", error.what()), ExitCode::bug);
    }
}
