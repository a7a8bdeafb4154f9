// Answer one message with an ONNX folder, in Kotlin on a JVM or on Android: App FOLDER TEXT
//
//   com.microsoft.onnxruntime:onnxruntime (Android: onnxruntime-android), ai.djl.huggingface:tokenizers
//
// Greedy, for the layouts plain and genai. The JVM has no renderer for the folder's Jinja template: ChatML is written
// out here, so change `prompt` for a model with another template. A GGUF file runs through llama.cpp's own Android
// example (examples/llama.android), with app.c's calls behind JNI.

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.FloatBuffer
import java.nio.LongBuffer
import java.nio.file.Path
import java.nio.file.Paths

const val MAX_NEW_TOKENS = 64

fun prompt(text: String) = "<|im_start|>user\n$text<|im_end|>\n<|im_start|>assistant\n"

class Model(folder: Path) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment().apply { setTelemetry(false) }
    private val session = environment.createSession(folder.resolve("model.onnx").toString(), OrtSession.SessionOptions())
    private val tokenizer = HuggingFaceTokenizer.newInstance(folder.resolve("tokenizer.json"))
    private val ends = tokenizer.encode("<|im_end|><|endoftext|>", false, false).ids.toSet()

    fun answer(text: String): String {
        val made = mutableListOf<Long>()
        var ids = tokenizer.encode(prompt(text), false, false).ids
        var past = session.inputInfo.filterKeys { it.startsWith("past_key_values.") }.mapValues { empty(it.value) }
        var nPast = 0
        while (made.size < MAX_NEW_TOKENS) {
            val inputs = past.toMutableMap()
            inputs["input_ids"] = longs(ids)
            inputs["attention_mask"] = longs(LongArray(nPast + ids.size) { 1 })
            inputs["position_ids"] = longs(LongArray(ids.size) { (nPast + it).toLong() })
            inputs.keys.retainAll(session.inputNames)
            val outputs = session.run(inputs)
            inputs.values.forEach { it.close() }
            nPast += ids.size
            val token = likeliest((outputs["logits"].get() as OnnxTensor))
            past = past.keys.associateWith {
                outputs[it.replace("past_key_values", "present")].get() as OnnxTensor
            }
            if (token in ends) break
            made += token
            ids = longArrayOf(token)
        }
        past.values.forEach { it.close() }
        return tokenizer.decode(made.toLongArray(), true)
    }

    /** Keys or values of no token: (1, heads, 0, width). */
    private fun empty(info: NodeInfo): OnnxTensor {
        val shape = (info.info as TensorInfo).shape
        return OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), longArrayOf(1, shape[1], 0, shape[3]))
    }

    private fun longs(values: LongArray) =
        OnnxTensor.createTensor(environment, LongBuffer.wrap(values), longArrayOf(1, values.size.toLong()))

    /** The token with the largest logit behind the last token; closes `logits` (1, tokens, vocabulary). */
    private fun likeliest(logits: OnnxTensor): Long = logits.use {
        val nVocab = it.info.shape[2].toInt()
        val values = it.floatBuffer
        val start = values.limit() - nVocab
        (0 until nVocab).maxByOrNull { token -> values.get(start + token) }!!.toLong()
    }

    override fun close() {
        session.close()
        tokenizer.close()
    }
}

fun main(arguments: Array<String>) {
    Model(Paths.get(arguments[0])).use { println(it.answer(arguments[1])) }
}
