// The Python bridge: a plugin that takes select, weight, merge and penalty from a Python file (docs/plugins.md).
//
// The interpreter is that of the environment which the program's LibTorch comes from, so that tensors are handed over
// as they are. It starts with the first .py file and is never finalised: LibTorch keeps pointers into it.
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <pybind11/embed.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "hetlora/plugin/method.hpp"

namespace py = pybind11;

namespace hetlora::plugin {
namespace {

[[noreturn]] void no_python(const std::string& why) {
    throw MissingEnvironment("no Python where the bridge needs it: " + why +
                             "; run make setup and make build again, or name the Python of the environment that the "
                             "program was built with in HETLORA_PYTHON");
}

std::string python_executable() {
    const char* given = std::getenv("HETLORA_PYTHON");
    std::string python = given != nullptr ? given : HETLORA_PYTHON_EXECUTABLE;
    if (access(python.c_str(), X_OK) != 0) no_python("cannot start " + python);
    return python;
}

/// @return the folder of the libtorch_cpu.so that this process uses
std::filesystem::path torch_library_folder() {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &info);
    return std::filesystem::path(info.dli_fname == nullptr ? "" : info.dli_fname).parent_path();
}

void import_torch(const std::string& python) {
    const py::object spec = py::module_::import("importlib.util").attr("find_spec")("torch");
    if (spec.is_none()) no_python(python + " has no torch");
    const py::list folders(spec.attr("submodule_search_locations"));
    const std::filesystem::path libraries = std::filesystem::path(folders[0].cast<std::string>()) / "lib";
    std::error_code error;
    if (!std::filesystem::equivalent(libraries, torch_library_folder(), error)) {
        no_python(python + " has another torch (" + libraries.string() +
                  ") than the one that this program was built with (" + torch_library_folder().string() + ")");
    }
    py::module_::import("torch");
}

void start_python() {
    if (Py_IsInitialized() != 0) return;
    const std::string python = python_executable();
    // Python's own extension modules look for the interpreter's symbols among the global ones.
    dlopen(HETLORA_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    config.install_signal_handlers = 0;  // signals belong to the run's stop requests
    config.write_bytecode = 0;
    config.buffered_stdio = 0;  // the interpreter is never finalised: nobody would write out what a plugin prints
    PyStatus status = PyConfig_SetBytesString(&config, &config.executable, python.c_str());
    if (!PyStatus_Exception(status)) status = PyConfig_SetBytesString(&config, &config.program_name, python.c_str());
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        no_python(python + " does not start: " + (status.err_msg == nullptr ? "no reason given" : status.err_msg));
    }
    try {
        import_torch(python);
    } catch (const py::error_already_set& error) {
        const std::string why = error.what();
        PyEval_SaveThread();
        no_python("import torch: " + why);
    }
    PyEval_SaveThread();  // from here on, whoever needs Python takes the lock
}

/// "ZeroDivisionError: division by zero (function weight, line 7)". @pre the lock is held
std::string describe(const py::error_already_set& error, const std::string& path) {
    std::string text =
        error.type().attr("__name__").cast<std::string>() + ": " + py::str(error.value()).cast<std::string>();
    std::string where;
    for (py::object trace = error.trace() ? error.trace() : py::none(); !trace.is_none();
         trace = trace.attr("tb_next")) {
        const py::object code = trace.attr("tb_frame").attr("f_code");
        if (code.attr("co_filename").cast<std::string>() != path) continue;
        const auto function = code.attr("co_name").cast<std::string>();
        where = (function == "<module>" ? std::string() : "function " + function + ", ") + "line " +
                std::to_string(trace.attr("tb_lineno").cast<long>());
    }
    return where.empty() ? text : text + " (" + where + ")";
}

py::list pairs(const std::vector<Factors>& factors) {
    py::list list;
    for (const Factors& pair : factors) list.append(py::make_tuple(pair.a, pair.b));
    return list;
}

std::string type_name(const py::handle& object) { return py::type::of(object).attr("__name__").cast<std::string>(); }

at::Tensor tensor(const py::handle& object, const std::string& what) {
    if (!THPVariable_Check(object.ptr())) {
        throw std::runtime_error(what + " is of type " + type_name(object) + ": it must be a torch.Tensor");
    }
    return THPVariable_Unpack(object.ptr());
}

std::vector<Factors> factors(const py::handle& object) {
    if (!py::isinstance<py::sequence>(object)) {
        throw std::runtime_error("what it returned is of type " + type_name(object) +
                                 ": it must be a list of (A, B), one for each matrix");
    }
    std::vector<Factors> result;
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(object)) {
        if (!py::isinstance<py::sequence>(item) || py::len(item) != 2) {
            throw std::runtime_error("an item that it returned is of type " + type_name(item) +
                                     ": it must be a pair (A, B)");
        }
        const auto pair = py::reinterpret_borrow<py::sequence>(item);
        result.push_back({.a = tensor(pair[0], "A"), .b = tensor(pair[1], "B")});
    }
    return result;
}

class PythonMethod final : public Method {
public:
    explicit PythonMethod(std::string path) : path_(std::move(path)) {
        start_python();
        const py::gil_scoped_acquire lock;
        py::object module;  // of the constructor, not a member: members are released without the lock if this throws
        try {
            const py::module_ machinery = py::module_::import("importlib.util");
            const py::object spec = machinery.attr("spec_from_file_location")("hetlora_plugin", path_);
            module = machinery.attr("module_from_spec")(spec);
            spec.attr("loader").attr("exec_module")(module);
        } catch (const py::error_already_set& error) {
            throw std::runtime_error(describe(error, path_));
        }
        const auto has = [&](const char* name) {
            if (!py::hasattr(module, name)) return false;
            if (PyCallable_Check(module.attr(name).ptr()) == 0) {
                throw std::runtime_error(std::string(name) + " is not a function");
            }
            return true;
        };
        parts_ = {.select = has("select"), .weight = has("weight"), .merge = has("merge"), .penalty = has("penalty")};
        module_ = std::move(module);
    }
    PythonMethod(const PythonMethod&) = delete;
    PythonMethod& operator=(const PythonMethod&) = delete;
    ~PythonMethod() override {
        const py::gil_scoped_acquire lock;
        module_ = {};
        run_ = {};
    }

    [[nodiscard]] Parts parts() const override { return parts_; }

    void start(const RunFacts& facts) override {
        const py::gil_scoped_acquire lock;
        run_ = space()(py::arg("matrices") = facts.matrices, py::arg("rank_min") = facts.rank_min,
                       py::arg("rank_max") = facts.rank_max, py::arg("rounds") = facts.rounds,
                       py::arg("scale") = facts.scale);
    }

    at::Tensor select(const SelectContext& context) override {
        const py::gil_scoped_acquire lock;
        const py::object result = call("select", [&] {
            return space()(py::arg("run") = run_, py::arg("round") = context.round, py::arg("seed") = context.seed,
                           py::arg("client") = context.client_C, py::arg("lora_rank") = context.lora_rank_C,
                           py::arg("global_factors") = pairs(context.global));
        });
        return tensor(result, "what it returned");
    }

    at::Tensor weight(const WeightContext& context) override {
        const py::gil_scoped_acquire lock;
        const py::object result = call("weight", [&] {
            return space()(
                py::arg("run") = run_, py::arg("round") = context.round, py::arg("client") = context.client_C,
                py::arg("n_samples") = context.n_samples_C, py::arg("n_tokens") = context.n_tokens_C,
                py::arg("lora_rank_before") = context.lora_rank_before_C,
                py::arg("lora_rank_after") = context.lora_rank_after_C, py::arg("loss_first") = context.loss_first_C,
                py::arg("loss_last") = context.loss_last_C, py::arg("train_loss") = context.train_loss_C,
                py::arg("product_norm_squared") = context.product_norm_squared_CM);
        });
        return tensor(result, "what it returned");
    }

    std::vector<Factors> merge(const MergeContext& context) override {
        const py::gil_scoped_acquire lock;
        const py::object result = call("merge", [&] {
            return space()(py::arg("run") = run_, py::arg("round") = context.round, py::arg("seed") = context.seed,
                           py::arg("client") = context.client_C, py::arg("lora_rank") = context.lora_rank_C,
                           py::arg("n_samples") = context.n_samples_C, py::arg("scale") = context.scale_C,
                           py::arg("weight") = context.weight_C, py::arg("has_slot") = context.has_slot_CR,
                           py::arg("factors") = pairs(context.factors),
                           py::arg("global_factors") = pairs(context.global));
        });
        return factors(result);
    }

    at::Tensor penalty(const PenaltyContext& context) override {
        const py::gil_scoped_acquire lock;
        const py::object result = call("penalty", [&] {
            return space()(py::arg("run") = run_, py::arg("round") = context.round, py::arg("step") = context.step,
                           py::arg("client") = context.client_C, py::arg("lora_rank") = context.lora_rank_C,
                           py::arg("factors") = pairs(context.factors), py::arg("received") = pairs(context.received));
        });
        return tensor(result, "what it returned");
    }

private:
    static py::object space() { return py::module_::import("types").attr("SimpleNamespace"); }

    /// @pre the lock is held
    template <typename MakeContext>
    py::object call(const char* name, MakeContext make_context) {
        try {
            return module_.attr(name)(make_context());
        } catch (const py::error_already_set& error) {
            throw std::runtime_error(describe(error, path_));
        }
    }

    std::string path_;
    py::object module_;
    py::object run_;
    Parts parts_;
};

}  // namespace
}  // namespace hetlora::plugin

HETLORA_PLUGIN_EXPORT const hetlora::plugin::Abi* hetlora_plugin_abi() { return &hetlora::plugin::own_abi; }
HETLORA_PLUGIN_EXPORT hetlora::plugin::Method* hetlora_plugin_create(const char* path) {
    return new hetlora::plugin::PythonMethod(path);
}
HETLORA_PLUGIN_EXPORT void hetlora_plugin_destroy(hetlora::plugin::Method* method) { delete method; }
