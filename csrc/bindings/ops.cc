// Ops and programs: any op is called by name with its arguments in a dict, so that a new op needs no binding.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/check.h"
#include "core/philox.h"
#include "core/program.h"
#include "core/usable_cores.h"
#include "cpu/isa.h"
#include "cpu/pack.h"
#include "cuda/device_program.h"
#include "cuda/op.h"
#include "kernels/common/product_shape.h"
#include "simt/grid.h"

namespace py = pybind11;

namespace simplear {
namespace {

const OpImpl& require_op(const std::string& op, const std::string& impl) {
  const OpImpl* found = find_op(op, impl);
  check(found != nullptr, ErrorKind::kUnsupported, "op ", op, " has no implementation named ", impl);
  const auto& isas = compiled_isas();
  const auto& here = available_isas();
  check(std::find(isas.begin(), isas.end(), impl) == isas.end() ||
            std::find(here.begin(), here.end(), impl) != here.end(),
        ErrorKind::kUnsupported, "op ", op, ": this processor cannot run ", impl);
  return *found;
}

// Writes one value into the Params bytes.
template <class Call>
void set_field(const char* op, const Field& field, const py::handle& value, DeviceId device, Call& call) {
  const auto put = [&](const auto& x) { std::memcpy(call.params.data() + field.offset, &x, sizeof(x)); };
  switch (field.type) {
    case FieldType::kAnyPointer:
    case FieldType::kTypedPointer: {
      void* data = nullptr;
      DType dtype = field.dtype;
      if (!value.is_none()) {
        const Tensor& tensor = value.cast<const Tensor&>();
        check(field.type == FieldType::kAnyPointer || tensor.dtype == field.dtype, ErrorKind::kInvalidRequest, op, ".",
              field.name, ": expected ", name_of(field.dtype), ", got ", name_of(tensor.dtype));
        check(tensor.device == device, ErrorKind::kInvalidRequest, op, ".", field.name, ": expected a tensor on ",
              name_of(device), ", got one on ", name_of(tensor.device));
        data = tensor.data;
        dtype = tensor.dtype;
        call.lenders.push_back(tensor.owner);
      }
      if (field.type == FieldType::kAnyPointer) put(AnyPtr{data, dtype});
      else put(data);
      return;
    }
    case FieldType::kInt32:
      if (py::isinstance<py::str>(value)) {
        call.bindings.push_back({field.offset, StepCounts::index_of(value.cast<std::string>())});
        return put(int32_t{0});
      }
      return put(value.cast<int32_t>());
    case FieldType::kInt64: return put(value.cast<int64_t>());
    case FieldType::kFloat: return put(value.cast<float>());
  }
}

// Op: OpImpl or CudaOp.
template <class Op, class Call>
void fill_call(const Op& op, const py::dict& fields, DeviceId device, Call& call) {
  call.params.resize(op.params_size);
  for (size_t i = 0; i < op.num_fields; ++i) {
    const Field& field = op.fields[i];
    check(fields.contains(field.name), ErrorKind::kInternal, op.op, ": no value for ", field.name);
    set_field(op.op, field, fields[field.name], device, call);
  }
  check(fields.size() == op.num_fields, ErrorKind::kInternal, op.op, ": expected ", op.num_fields, " fields, got ",
        fields.size());
}

Program::Call make_call(const std::string& name, const std::string& impl, const py::dict& fields) {
  Program::Call call{&require_op(name, impl), {}, {}, {}};
  fill_call(*call.op, fields, {}, call);
  return call;
}

DeviceProgram::Call make_device_call(const std::string& name, const std::string& impl, const py::dict& fields,
                                     DeviceId device) {
  DeviceProgram::Call call{};
  if (device.kind == DeviceKind::kSimulated) {
    call.host_op = &require_op(name, impl);
    fill_call(*call.host_op, fields, device, call);
    return call;
  }
  call.cuda_op = find_cuda_op(name, impl);
  check(call.cuda_op != nullptr, ErrorKind::kUnsupported, "op ", name, " has no implementation named ", impl, " for ",
        name_of(device));
  fill_call(*call.cuda_op, fields, device, call);
  return call;
}

DeviceProgram::Call make_compiled_call(DeviceProgram& program, const py::list& sizes, const py::list& lenders) {
  DeviceProgram::Call call{};
  for (const py::handle& lender : lenders) call.lenders.push_back(lender.cast<const Tensor&>().owner);
  for (const py::handle& entry : sizes) {
    const auto [named, launches] = entry.cast<std::pair<std::map<std::string, int32_t>, py::list>>();
    StepCounts counts;
    counts.num_tokens = named.at("num_tokens"), counts.num_seqs = named.at("num_seqs");
    counts.num_logit_rows = named.at("num_logit_rows"), counts.num_draws = named.at("num_draws");
    counts.num_windows = named.at("num_windows");
    std::vector<DeviceProgram::CompiledLaunch>& compiled = call.compiled[counts];
    for (const py::handle& launch : launches) {
      const auto [image, name, grid, threads, shared_bytes, arguments] =
          launch.cast<std::tuple<std::string, std::string, std::array<uint32_t, 3>, uint32_t, uint32_t,
                                 std::vector<std::string>>>();
      KernelShape shape{{grid[0], grid[1], grid[2]}, threads, shared_bytes};
      compiled.push_back({program.load(image, name), shape, arguments});
    }
  }
  return call;
}

void run_op(const std::string& name, const std::string& impl, const py::dict& fields, ThreadPool& pool) {
  const Program::Call call = make_call(name, impl, fields);
  check(call.bindings.empty(), ErrorKind::kInternal, name, ": a count can be bound in a program only");
  without_gil([&] {
    std::lock_guard turn(pool.turns());
    call.op->run(call.params.data(), pool);
  });
}

// What a barrier costs, for benchmarks: an op's work cannot take less.
std::vector<double> empty_calls(ThreadPool& pool, int count) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds(std::max(count, 0));
  std::lock_guard turn(pool.turns());
  for (double& spent : seconds) {
    const auto start = Clock::now();
    pool.run([](void*, int, int) {}, nullptr);
    spent = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return seconds;
}

// For tests: which thread did each item of an op whose items are shared; thread `slow` sleeps for `seconds` an item.
std::vector<int> share_out(ThreadPool& pool, int64_t items, int64_t grain, int slow, double seconds) {
  struct Context {
    std::vector<std::atomic<int>> times_done;
    std::vector<int> done_by;
    int slow;
    double seconds;
  } context{std::vector<std::atomic<int>>(items), std::vector<int>(items, -1), slow, seconds};
  std::lock_guard turn(pool.turns());
  pool.share(
      items, grain,
      [](void* opaque, int64_t begin, int64_t end, int thread) {
        Context& c = *static_cast<Context*>(opaque);
        for (int64_t item = begin; item < end; ++item) {
          ++c.times_done[item];
          c.done_by[item] = thread;
        }
        if (thread == c.slow)
          std::this_thread::sleep_for(std::chrono::duration<double>(c.seconds * static_cast<double>(end - begin)));
      },
      &context);
  for (int64_t item = 0; item < items; ++item)
    check(context.times_done[item] == 1, ErrorKind::kInternal, "item ", item, ": done ",
          context.times_done[item].load(), " times");
  return context.done_by;
}

}  // namespace

void bind_ops(py::module_& m) {
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(m, "ThreadPool", "A fixed team of worker threads.")
      .def(py::init([](int num_threads) {
             check(num_threads >= 1 && num_threads <= 1024, ErrorKind::kInvalidRequest,
                   "threads: expected 1..1024, got ", num_threads);
             return std::shared_ptr<ThreadPool>(new ThreadPool(num_threads), [owner = ThisProcess()](ThreadPool* pool) {
               if (owner.is_here()) delete pool;
             });
           }),
           py::arg("num_threads"))
      .def_property_readonly("size", &ThreadPool::size)
      .def("empty_calls", gil_free(&empty_calls), py::arg("count"),
           "Calls all threads `count` times to do nothing; the seconds of each call.")
      .def("share_out", gil_free(&share_out), py::kw_only(), py::arg("items"), py::arg("grain"), py::arg("slow") = -1,
           py::arg("seconds") = 0.0, "Which thread did each of so many items, `slow` sleeping after each; for tests.");

  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "A recorded forward pass.")
      .def(py::init())
      .def(
          "add",
          [](Program& program, const std::string& op, const std::string& impl, const py::dict& fields) {
            program.add(make_call(op, impl, fields));
          },
          py::arg("op"), py::arg("impl"), py::arg("fields"),
          "Appends a call; an integer field may be the name of a StepPlan count instead of a number.")
      .def(
          "run",
          [](Program& program, const StepPlan& plan, ThreadPool& pool) {
            without_gil([&] { program.run(plan, pool, Program::Turns::kShared); });
          },
          py::arg("plan"), py::arg("pool"), "Replays all calls, taking turns with an engine that has the same threads.")
      .def("set_timing", &Program::set_timing, py::arg("on"), "Starts (from zero) or stops timing every call.")
      .def("timings", [](const Program& program) {
        py::list rows;
        for (const auto& call : program.calls()) rows.append(py::make_tuple(call.op->op, call.seconds));
        return rows;
      });

  py::class_<DeviceProgram, std::shared_ptr<DeviceProgram>>(m, "DeviceProgram", "A forward pass recorded for a device.")
      .def(py::init<std::shared_ptr<Driver>, std::shared_ptr<ThreadPool>>(), py::arg("driver"), py::arg("pool"))
      .def(
          "add",
          [](DeviceProgram& program, const std::string& op, const std::string& impl, const py::dict& fields) {
            program.add(make_device_call(op, impl, fields, program.driver()->id()));
          },
          py::arg("op"), py::arg("impl"), py::arg("fields"),
          "Appends a call; an integer field may be the name of a count of the step instead of a number.")
      .def(
          "add_compiled",
          [](DeviceProgram& program, const py::list& sizes, const py::list& lenders) {
            program.add(make_compiled_call(program, sizes, lenders));
          },
          py::arg("sizes"), py::arg("lenders"),
          "Appends a call of compiled kernels: [(sizes of the step, [(image, name, grid, threads, shared bytes, "
          "[bytes of each argument])])]; `lenders` stay alive as long as the program.")
      .def("set_overlap", &DeviceProgram::set_overlap, py::arg("is_dependent"), py::arg("delay_ns"),
           "Whether kernels may begin before the one before has ended; delay_ns: idle time put before each, for tests.")
      .def("run", gil_free(&DeviceProgram::run), "Runs all calls once, now.")
      .def("time", gil_free(&DeviceProgram::time), py::arg("repeats"),
           "Seconds that one launch of a graph with all calls takes, `repeats` times over.");

  m.def("run_op", &run_op, py::arg("op"), py::arg("impl"), py::arg("fields"), py::arg("pool"),
        "Runs one op now, with the GIL released.");
  m.def(
      "op_impls",
      [] {
        py::dict found;
        for (const OpImpl* op : all_ops()) {
          if (find_cuda_op(op->op, op->impl) != nullptr) continue;
          if (!found.contains(op->op)) found[op->op] = py::list();
          found[op->op].attr("append")(op->impl);
        }
        return found;
      },
      "{op: [implementations for a CPU that were compiled in]}");
  m.def(
      "cuda_op_impls",
      [] {
        py::dict found;
        for (const CudaOp* op : all_cuda_ops()) {
          if (!found.contains(op->op)) found[op->op] = py::list();
          found[op->op].attr("append")(op->impl);
        }
        return found;
      },
      "{op: [\"cuda\", \"simt\"]}: kernels for a GPU, and the same kernels simulated on the host.");
  m.def(
      "divide_groups",
      [](int32_t num_groups, int32_t num_multiprocessors, int32_t resident) {
        const ProductBlocks blocks = divide_groups(num_groups, num_multiprocessors, resident);
        return py::make_tuple(blocks.groups_per_block, blocks.num_blocks);
      },
      "How the kernels cut a product into blocks (kernels/common/product_shape.h).");
  m.def(
      "row_groups",
      [](int64_t num_rows, int64_t max_bytes, std::array<int64_t, 3> bytes) {
        return row_groups(num_rows, max_bytes, {bytes[0], bytes[1], bytes[2]});
      },
      "How many groups of 8 rows a block takes at once.");
  m.def("set_simt_seed", &simt::set_schedule_seed, py::arg("seed"),
        "Chooses the order in which simulated threads and blocks run.");
  m.def("op_fields", [](const std::string& name) {
    py::list names;
    for (const OpImpl* op : all_ops()) {
      if (name != op->op) continue;
      for (size_t i = 0; i < op->num_fields; ++i) names.append(op->fields[i].name);
      break;
    }
    return names;
  });
  m.def("compiled_isas", &compiled_isas);
  m.def("available_isas", &available_isas);
  m.def("chosen_isa", &choose_isa);
  m.def("default_num_threads", &default_num_threads, py::arg("root") = "", py::arg("processors") = std::vector<int>{},
        "Physical cores that this process may use, control groups considered; the arguments are for tests.");
  m.def(
      "philox", [](uint64_t key, std::array<uint32_t, 4> counter) { return philox(key, counter); }, py::arg("key"),
      py::arg("counter"), "Philox4x32-10: four 32-bit words.");

  m.def("packed_size",
        [](int64_t rows, int64_t k, const std::string& dtype) { return packed_size(rows, k, dtype_from_name(dtype)); });
  m.def("pack_panels", gil_free(&pack_panels), py::arg("parts"), py::arg("packed"), py::arg("interleaved"),
        py::arg("pool"));
  m.def("convert", gil_free(&convert), py::arg("source"), py::arg("target"), py::arg("pool"));
  m.def("all_finite", gil_free(&all_finite), py::arg("tensor"), py::arg("pool"));
}

}  // namespace simplear
