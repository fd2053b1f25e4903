// StepPlan, Request and the engine thread.

#include "core/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace simplear {
namespace {

double seconds_between(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

void raise_if_failed(const Request& request) {
  if (request.status == RequestStatus::kFailed) fail(request.error_kind, request.error);
}

py::dict timings(const Request& r) {
  py::dict seconds;
  seconds["queue"] = seconds_between(r.submitted, r.admitted);
  if (!r.is_scoring()) seconds["prefill"] = seconds_between(r.admitted, r.first_token);
  seconds["decode"] = seconds_between(r.is_scoring() ? r.admitted : r.first_token, r.ended);
  return seconds;
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

constexpr const char* kDraftSources[] = {"left", "above", "context", "marginal", "previous", "given"};
constexpr const char* kDraftRules[] = {"equal", "ratio", "simplear"};

template <size_t N>
int32_t index_of(const char* const (&names)[N], const char* what, const std::string& name) {
  const auto at = std::find(std::begin(names), std::end(names), name);
  check(at != std::end(names), ErrorKind::kInvalidRequest, what, ": unknown: ", name);
  return static_cast<int32_t>(at - std::begin(names));
}

// By place in the window: (drafts verified, drafts kept).
py::tuple to_arrays(const DraftCounts& counts) {
  return py::make_tuple(to_array(counts.num_verified), to_array(counts.num_kept));
}

// Joining the engine thread must not hold the GIL: the thread may be letting go of a Python object.
struct StopWithoutGil {
  ThisProcess owner;
  void operator()(Engine* engine) const {
    if (owner.is_here()) without_gil([engine] { delete engine; });
  }
};

// Likewise: the engine thread may be holding what ends the pause.
struct EndWithoutGil {
  ThisProcess owner;
  void operator()(Engine::Pause* pause) const {
    if (owner.is_here()) without_gil([pause] { delete pause; });
  }
};
using PauseHolder = std::unique_ptr<Engine::Pause, EndWithoutGil>;

}  // namespace

void bind_engine(py::module_& m) {
  auto plan =
      py::class_<StepPlan, std::shared_ptr<StepPlan>>(m, "StepPlan", "The arrays that describe one forward step.")
          .def(py::init([](int32_t max_tokens, int32_t max_pairs, int32_t max_logit_rows, int32_t max_draws,
                           int32_t max_blocks_per_seq) {
                 return std::make_shared<StepPlan>(
                     StepLimits{max_tokens, max_pairs, max_logit_rows, max_draws, max_blocks_per_seq});
               }),
               py::kw_only(), py::arg("max_tokens"), py::arg("max_pairs"), py::arg("max_logit_rows"),
               py::arg("max_draws"), py::arg("max_blocks_per_seq"))
          .def_readwrite("num_tokens", &StepPlan::num_tokens)
          .def_readwrite("num_seqs", &StepPlan::num_seqs)
          .def_readwrite("num_logit_rows", &StepPlan::num_logit_rows)
          .def_readwrite("num_draws", &StepPlan::num_draws)
          .def_readwrite("num_windows", &StepPlan::num_windows)
          .def_readonly("num_scores", &StepPlan::num_scores);
  for (const auto& entry : StepPlan::tensors())
    plan.def_property_readonly(entry.name, [member = entry.tensor](const StepPlan& p) { return p.*member; });

  py::class_<Request, std::shared_ptr<Request>>(m, "Request", "One image on its way through the engine.")
      .def(py::init())
      .def_readwrite("prompt", &Request::prompt)
      .def_readwrite("negative", &Request::negative)
      .def_readwrite("num_image_tokens", &Request::num_image_tokens)
      .def_readwrite("guidance_scale", &Request::guidance_scale)
      .def_readwrite("temperature", &Request::temperature)
      .def_readwrite("top_k", &Request::top_k)
      .def_readwrite("top_p", &Request::top_p)
      .def_readwrite("seed", &Request::seed)
      .def_readwrite("draft_window", &Request::draft_window)
      .def_readwrite("adapts_window", &Request::adapts_window)
      .def_property(
          "draft_source", [](const Request& r) { return kDraftSources[static_cast<int>(r.draft_source)]; },
          [](Request& r, const std::string& name) {
            r.draft_source = static_cast<DraftSource>(index_of(kDraftSources, "draft_source", name));
          })
      .def_property(
          "draft_rule", [](const Request& r) { return kDraftRules[static_cast<int>(r.draft_rule)]; },
          [](Request& r, const std::string& name) {
            r.draft_rule = static_cast<DraftRule>(index_of(kDraftRules, "draft_rule", name));
          })
      .def_readwrite("relaxed_levels", &Request::relaxed_levels)
      .def_readwrite("proposal", &Request::proposal)
      .def_readwrite("grid_width", &Request::grid_width)
      .def_property_readonly("accepted_lens", [](const Request& r) { return to_array(r.accepted_lens); })
      .def_property_readonly("draft_counts", [](const Request& r) { return to_arrays(r.draft_counts); })
      .def_readwrite("forced_codes", &Request::forced_codes)
      .def_readwrite("scores", &Request::scores)
      .def("cancel", [](Request& r) { r.cancel_requested = true; })
      .def_property_readonly("status",
                             [](const Request& r) {
                               constexpr const char* names[] = {"queued", "running", "finished", "failed"};
                               return names[static_cast<int>(r.status)];
                             })
      .def_property_readonly("num_done", [](const Request& r) { return r.num_done.load(); })
      .def_readonly("num_steps", &Request::num_steps)
      .def_property_readonly("codes", [](const Request& r) { return to_array(r.codes); })
      .def_property_readonly("log_probs", [](const Request& r) { return to_array(r.log_probs); })
      .def_property_readonly("timings", &timings, "Seconds by phase; read it after the request ended.")
      .def("raise_if_failed", &raise_if_failed)
      .def("wait", gil_free(&Engine::wait), py::arg("seconds"), "True when the request ended within `seconds`.");

  py::class_<Scheduler>(m, "Scheduler", "The scheduler by itself: what the engine thread asks before and after a step.")
      .def(py::init([](const StepPlan& plan, int32_t num_blocks, int32_t block_size, int32_t max_queue,
                       int32_t max_positions, int32_t num_codes, int32_t visual_offset, bool plans_ahead) {
             return std::make_unique<Scheduler>(
                 SchedulerLimits{max_queue, max_positions, num_codes, visual_offset, plans_ahead}, plan.limits,
                 num_blocks, block_size);
           }),
           py::kw_only(), py::arg("plan"), py::arg("num_blocks"), py::arg("block_size"), py::arg("max_queue"),
           py::arg("max_positions"), py::arg("num_codes"), py::arg("visual_offset"), py::arg("plans_ahead") = false)
      .def("enqueue", &Scheduler::enqueue, py::arg("request"))
      .def("next", &Scheduler::next, py::arg("plan"), "Fills the plan; False when there is nothing to do.")
      .def("steps_ahead", &Scheduler::steps_ahead, py::arg("plan"),
           "For how many steps, the planned one included, the batch stays as it is.")
      .def("again", &Scheduler::again, py::arg("plan"), "Plans the next of these steps.")
      .def(
          "commit",
          [](Scheduler& scheduler, const StepPlan& plan, const Tensor& logits) {
            scheduler.commit(plan, {logits.as<float>(), static_cast<size_t>(logits.size())});
          },
          py::arg("plan"), py::arg("logits"))
      .def("observe", &Scheduler::observe, py::arg("plan"), py::arg("seconds"))
      .def("forget_prefixes", &Scheduler::forget_prefixes)
      .def_property_readonly("is_idle", &Scheduler::is_idle)
      .def_property_readonly("num_waiting", &Scheduler::num_waiting)
      .def_property_readonly("num_running", &Scheduler::num_running)
      .def_property_readonly("num_free_blocks", [](const Scheduler& s) { return s.allocator().num_free(); })
      .def("ref_count", [](const Scheduler& s, int32_t block) { return s.allocator().ref_count(block); });

  py::class_<StepRunner, std::shared_ptr<StepRunner>>(m, "StepRunner", "What carries out planned steps.");
  py::class_<CpuRunner, StepRunner, std::shared_ptr<CpuRunner>>(m, "CpuRunner", "One step at a time, in this process.")
      .def(py::init<std::shared_ptr<Program>, std::shared_ptr<ThreadPool>, Tensor>(), py::kw_only(), py::arg("program"),
           py::arg("pool"), py::arg("logits"));

  py::class_<Engine::Pause, PauseHolder>(m, "Pause", "While it lasts no step runs. An interrupt that loses it ends it.")
      .def("__enter__", [](py::object pause) { return pause; })
      .def("__exit__", [](Engine::Pause& pause, const py::args&) { without_gil([&] { pause.end(); }); });

  py::class_<Engine, std::unique_ptr<Engine, StopWithoutGil>>(
      m, "Engine", "The engine thread: plans, runs and commits steps without touching Python.")
      .def(py::init([](std::shared_ptr<StepPlan> plan, std::shared_ptr<StepRunner> runner, int32_t num_blocks,
                       int32_t block_size, int32_t max_queue, int32_t max_positions, int32_t num_codes,
                       int32_t visual_offset) {
             return std::unique_ptr<Engine, StopWithoutGil>(
                 new Engine(SchedulerLimits{max_queue, max_positions, num_codes, visual_offset}, num_blocks, block_size,
                            std::move(plan), std::move(runner)));
           }),
           py::kw_only(), py::arg("plan"), py::arg("runner"), py::arg("num_blocks"), py::arg("block_size"),
           py::arg("max_queue"), py::arg("max_positions"), py::arg("num_codes"), py::arg("visual_offset"))
      .def("submit", gil_free(&Engine::submit), py::arg("request"))
      .def("cancel", gil_free(&Engine::cancel), py::arg("request"))
      .def(
          "pause",
          [](Engine& engine, bool weights_change) {
            return PauseHolder(without_gil([&] { return new Engine::Pause(engine, weights_change); }));
          },
          py::arg("weights_change"), py::keep_alive<0, 1>(),
          "Waits for the step under way. No other begins until the result, a context manager, is left or let go of.")
      .def("stop", gil_free(&Engine::stop))
      .def("stats",
           [](Engine& engine) {
             // The engine thread may hold its lock while it lets go of a Python object.
             const Engine::Stats s = without_gil([&] { return engine.stats(); });
             py::dict stats;
             stats["num_steps"] = s.num_steps;
             stats["num_tokens"] = s.num_tokens;
             stats["busy_seconds"] = s.busy_seconds;
             stats["num_waiting"] = s.num_waiting;
             stats["num_running"] = s.num_running;
             stats["num_blocks"] = s.num_blocks;
             stats["num_free_blocks"] = s.num_free_blocks;
             stats["num_drafts_verified"] = to_array(s.drafts.num_verified);
             stats["num_drafts_kept"] = to_array(s.drafts.num_kept);
             return stats;
           })
      .def_property("learns_drafts", gil_free(&Engine::learns_drafts), gil_free(&Engine::set_learns_drafts))
      .def(
          "draft_entries",
          [](Engine& engine, int32_t min_seen) {
            const std::vector<ContextTable::Entry> entries =
                without_gil([&] { return engine.draft_entries(min_seen); });
            const auto count = static_cast<py::ssize_t>(entries.size());
            py::array_t<int32_t> columns({py::ssize_t{4}, count});
            auto c = columns.mutable_unchecked<2>();
            for (py::ssize_t i = 0; i < count; ++i) {
              c(0, i) = static_cast<int32_t>(entries[i].tag);
              c(1, i) = entries[i].code;
              c(2, i) = entries[i].num_right;
              c(3, i) = entries[i].num_seen;
            }
            return columns;
          },
          py::arg("min_seen"), "int32 [4, n]: tag, code, how often it was right, how often the context was seen.")
      .def(
          "learn_picture",
          [](Engine& engine, const std::vector<int32_t>& codes, int32_t width) {
            without_gil([&] { engine.learn_picture(codes, width); });
          },
          py::arg("codes"), py::arg("width"))
      .def(
          "insert_draft_entries",
          [](Engine& engine, const py::array_t<int32_t, py::array::c_style | py::array::forcecast>& columns) {
            check(columns.ndim() == 2 && columns.shape(0) == 4, ErrorKind::kInvalidRequest,
                  "draft entries: expected [4, n]");
            const auto c = columns.unchecked<2>();
            std::vector<ContextTable::Entry> entries(columns.shape(1));
            for (size_t i = 0; i < entries.size(); ++i)
              entries[i] = {static_cast<uint32_t>(c(0, i)), 0, c(1, i), static_cast<uint16_t>(c(2, i)),
                            static_cast<uint16_t>(c(3, i))};
            without_gil([&] { engine.insert_draft_entries(entries); });
          },
          py::arg("columns"));
}

}  // namespace simplear
