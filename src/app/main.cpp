// hetlora: the program. main -> commands -> experiment -> round -> strategy; see docs/architecture.md.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "hetlora/app/commands.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/comm/mpi_transport.hpp"

namespace {

using namespace hetlora;

int complain(const std::string& text, ExitCode code) {
    std::fprintf(stderr, "hetlora: %s\n", text.c_str());
    return static_cast<int>(code);
}

/// Runs a verb that may need all MPI ranks. Errors that all of them agreed on end in order; anything else, which only
/// this one knows of, ends the whole run at once: the others would wait for it for ever.
int run_on_all_ranks(Transport& transport, const CommandLine& command, const std::string& command_text) {
    const auto fail = [&](const std::string& text, ExitCode code) {
        if (transport.is_root() || transport.mpi_size() > 1) {
            complain(transport.mpi_size() > 1 ? fmt::format("MPI rank {} on {}: {}", transport.mpi_rank(),
                                                            transport.hosts()[static_cast<std::size_t>(transport.mpi_rank())], text)
                                              : text, code);
        }
        if (transport.mpi_size() > 1) transport.abort(static_cast<int>(code));
        return static_cast<int>(code);
    };
    try {
        return run_verb(transport, command, command_text);
    } catch (const AgreedError& error) {
        if (transport.is_root()) complain(error.what(), error.code());
        transport.barrier();  // nobody leaves (and makes mpirun end the others) before root has spoken
        return static_cast<int>(error.code());
    } catch (const Error& error) {
        return fail(error.what(), error.code());
    } catch (const std::exception& error) {
        return fail(fmt::format("internal error: {}\nThis is a bug of hetlora: please report it with the command and the config.",
                                error.what()), ExitCode::bug);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::string command_text;
    for (int i = 0; i < argc; ++i) command_text += (i == 0 ? "" : " ") + std::string(argv[i]);
    try {
        const CommandLine command = parse_command_line(std::vector<std::string>(argv + 1, argv + argc));
        if (is_plain_verb(command)) return run_plain_verb(command);
        prepare_process();
        const MpiSession session(&argc, &argv);
        const auto transport = make_mpi_transport(session);
        return run_on_all_ranks(*transport, command, command_text);
    } catch (const Error& error) {
        return complain(error.what(), error.code());
    } catch (const std::exception& error) {
        return complain(fmt::format("internal error: {}", error.what()), ExitCode::bug);
    }
}
