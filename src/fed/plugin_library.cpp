#include "hetlora/fed/plugin_library.hpp"

#include <dlfcn.h>

#include "hetlora/base/error.hpp"
#include "hetlora/base/sha256.hpp"

namespace hetlora {
namespace {

constexpr const char* bridge_name = "libhetlora_python.so";

std::filesystem::path find_bridge(const std::filesystem::path& script) {
    const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    for (const auto& candidate : {folder / bridge_name, folder.parent_path() / "lib" / bridge_name}) {
        if (std::filesystem::exists(candidate)) return candidate;
    }
    throw environment_error(
        "strategy.plugin {}: no Python where the bridge needs it: there is no {} beside the program in {}. It is built "
        "with the program where LibTorch is the torch package of a Python that has its headers (python3-dev): run make "
        "setup, then make build",
        script.string(), bridge_name, folder.string());
}

template <typename Function>
Function* find_function(void* library, const char* name, const std::filesystem::path& path) {
    if (void* symbol = dlsym(library, name)) return reinterpret_cast<Function*>(symbol);
    throw input_error("strategy.plugin {}: not a plugin of hetlora: it exports no {}; see docs/plugins.md",
                      path.string(), name);
}

void check_abi(const plugin::Abi& abi, const std::filesystem::path& path) {
    const plugin::Abi& own = plugin::own_abi;
    const auto other = [&](const std::string& theirs, const std::string& ours) {
        return input_error(
            "strategy.plugin {}: built for another version: it has {}, this program {} (compilers {} and {}); build "
            "the "
            "plugin anew against the headers that `cmake --install` of this program gives",
            path.string(), theirs, ours, abi.compiler, own.compiler);
    };
    if (abi.interface_version != own.interface_version) {
        throw input_error(
            "strategy.plugin {}: built for another version: it has plugin interface {}, this program {}; build the "
            "plugin "
            "anew against the headers that `cmake --install` of this program gives",
            path.string(), abi.interface_version, own.interface_version);
    }
    if (abi.torch_major != own.torch_major || abi.torch_minor != own.torch_minor) {
        throw other(fmt::format("LibTorch {}.{}", abi.torch_major, abi.torch_minor),
                    fmt::format("{}.{}", own.torch_major, own.torch_minor));
    }
    if (abi.cxx11_abi != own.cxx11_abi) {
        throw other(fmt::format("_GLIBCXX_USE_CXX11_ABI={}", abi.cxx11_abi), fmt::format("{}", own.cxx11_abi));
    }
}

/// What the loader says of a missing Python library.
bool names_python(const std::string& complaint) { return complaint.find("python") != std::string::npos; }

}  // namespace

PluginLibrary::PluginLibrary(const std::filesystem::path& path) : path_(path), sha256_(sha256_file(path)) {
    const bool is_python = path.extension() == ".py";
    const auto file = is_python ? find_bridge(path) : path;
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const std::string complaint = dlerror();
        if (is_python && names_python(complaint)) {
            throw environment_error(
                "strategy.plugin {}: no Python where the bridge needs it: {}; run make setup and make build again, or "
                "put "
                "that library's folder into LD_LIBRARY_PATH",
                path.string(), complaint);
        }
        throw input_error(
            "strategy.plugin {}: cannot be loaded: {}; it must be a shared library built against this "
            "hetlora and its LibTorch, or a .py file",
            path.string(), complaint);
    }
    check_abi(*find_function<const plugin::Abi*()>(library, "hetlora_plugin_abi", file)(), file);
    auto* create = find_function<plugin::Method*(const char*)>(library, "hetlora_plugin_create", file);
    auto* destroy = find_function<void(plugin::Method*)>(library, "hetlora_plugin_destroy", file);
    try {
        inner_ = {create(path.c_str()), Destroy{destroy}};
    } catch (const plugin::MissingEnvironment& error) {
        throw environment_error("strategy.plugin {}: {}", path.string(), error.what());
    } catch (const std::exception& error) {
        throw input_error("strategy.plugin {}: {}", path.string(), error.what());
    } catch (...) {
        throw input_error("strategy.plugin {}: hetlora_plugin_create threw something that is no std::exception",
                          path.string());
    }
    if (!inner_) throw input_error("strategy.plugin {}: hetlora_plugin_create gave nothing", path.string());
    method_ = std::make_unique<CheckedMethod>(*inner_, path.string());
}

OwnParts PluginLibrary::parts() const {
    const plugin::Parts parts = method_->parts();
    return {.select = parts.select, .weight = parts.weight, .merge = parts.merge, .penalty = parts.penalty};
}

std::string PluginLibrary::describe() const {
    const OwnParts own = parts();
    std::string names;
    const auto add = [&](bool has, const char* name) {
        if (has) names += (names.empty() ? "" : ", ") + std::string(name);
    };
    add(own.select, "select");
    add(own.weight, "weight");
    add(own.merge, "merge");
    add(own.penalty, "penalty");
    return fmt::format("{} of {} (sha256 {})", names, path_.string(), sha256_);
}

}  // namespace hetlora
