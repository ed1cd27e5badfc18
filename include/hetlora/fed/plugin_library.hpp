// strategy.plugin as a loaded shared library. A path that ends in .py is loaded by the Python bridge, itself a plugin
// (libhetlora_python.so, beside the program or in ../lib), so that the program needs no Python.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "hetlora/fed/checked_method.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

class PluginLibrary {
public:
    /// @throws Error (input) if the file is missing, no plugin, built for another hetlora or LibTorch, or throws;
    ///         (environment) if a .py file needs the bridge and that is not there
    explicit PluginLibrary(const std::filesystem::path& path);

    [[nodiscard]] plugin::Method& method() const { return *method_; }
    [[nodiscard]] OwnParts parts() const;
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }
    [[nodiscard]] const std::string& sha256() const { return sha256_; }
    /// "select, merge of FILE (sha256 ...)", for people and for the log.
    [[nodiscard]] std::string describe() const;

private:
    /// The library's own delete; the library itself stays loaded, since LibTorch and Python keep pointers into it.
    struct Destroy {
        void (*destroy)(plugin::Method*);
        void operator()(plugin::Method* method) const { destroy(method); }
    };
    std::filesystem::path path_;
    std::string sha256_;
    std::unique_ptr<plugin::Method, Destroy> inner_{nullptr, Destroy{nullptr}};
    std::unique_ptr<CheckedMethod> method_;
};

}  // namespace hetlora
